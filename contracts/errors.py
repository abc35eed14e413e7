"""The one error a user is meant to read: it names the value that is wrong and the way out."""


class SlipwayError(Exception):
    """Bad input, an impossible plan or a failed gate. The command line prints its text alone, without a traceback."""
