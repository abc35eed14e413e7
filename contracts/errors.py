"""The errors a user is meant to read: each names the value that is wrong and the way out."""


class SlipwayError(Exception):
    """Bad input, an impossible plan or a failed gate. The command line prints its text alone, without a traceback.

    `status` is what the process ends with.
    """

    status = 1


class DataRefused(SlipwayError):
    """Parsed data from which nothing can be learnt. The stage parse keeps the workload's quality report of them."""


class Interrupted(SlipwayError):
    """A run was asked to stop and saved what it had: the same command goes on. 75 is EX_TEMPFAIL, on which queues try again."""

    status = 75


class Hung(SlipwayError):
    """A run stood still for longer than it may, and was ended."""

    status = 76
