"""What must not be shown."""

import re


def without_secrets(text: str) -> str:
    """The text without the user names and passwords that URLs in it carry."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)
