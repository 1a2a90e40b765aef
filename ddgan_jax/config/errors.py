"""Mistakes of the user's, each with one sentence that says what to do."""


class UserError(ValueError):
  """A mistake the user can mend: commands print its one sentence without a traceback."""


class ConfigError(UserError):
  """A field of the configuration is unknown, of the wrong type, or has a value that cannot work."""
