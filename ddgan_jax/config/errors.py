"""Errors that users can fix. Each message is one sentence: what was found, and what to do."""


class UserError(ValueError):
  """A mistake that the user can fix; commands print its message without a traceback."""


class ConfigError(UserError):
  """A field of the configuration is unknown, has the wrong type, or conflicts with another field."""
