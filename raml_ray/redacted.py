"""What must not be shown."""

import re

URL = re.compile(r"(\w{1,20})(://)((?:(?!\w{1,20}://)\S)+)")
USER = re.compile(r"""(?:[^/@\s\[]*:(?!\d{1,5}(?:[/?#"',;)\]}>]|$))\S*|[^/\s]*)@""")
"""Where a password (which no port is) begins before the path, all up to the last @: keys that nobody quoted hold / and @."""
QUERY = re.compile(
    r"""([?&#;][\w.%-]*(?:token|passw|pwd|secret|sig|credential|key|auth)[\w.%-]*=)[^&#\s"'<>\\]+""", re.IGNORECASE
)
OF_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
"""Azure's, where what stands before @ is a container and in no address a user."""


def without_secrets(text: str) -> str:
    """The text without what URLs in it carry of secrets: user names, passwords, and the values of tokens, keys and
    signatures in their queries. `***` stands in their places."""
    return URL.sub(_shown, text)


def _shown(url: re.Match[str]) -> str:
    scheme, separator, rest = url.groups()
    user = USER.match(rest)
    if user and not (scheme.lower() in OF_CONTAINERS and ":" not in user[0]):
        rest = f"***@{rest[user.end() :]}"
    return scheme + separator + QUERY.sub(r"\1***", rest)
