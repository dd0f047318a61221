"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Wrong input with a known fix: a config key, a file, an annotation.

    The message names what is wrong and what to do. The scripts print it without a traceback.
    """
