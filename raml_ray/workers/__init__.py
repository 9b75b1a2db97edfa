"""What runs inside one process, on any device. Nothing here knows Ray."""
