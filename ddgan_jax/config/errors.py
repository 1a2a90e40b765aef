"""Errors that users can fix, each one sentence that says what to do."""


class UserError(ValueError):
  """A mistake that the user can fix: commands print its one sentence without a traceback."""


class ConfigError(UserError):
  """A field of the configuration is unknown, of the wrong type, or has a value that cannot work."""
