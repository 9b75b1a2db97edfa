"""One file per arrow of the data flow. Each stage is `run(context) -> Outcome`; Ray lives here."""
