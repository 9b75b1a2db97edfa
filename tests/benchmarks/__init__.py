"""Scripts that measure; each says how it is started."""
