"""Why a cluster did not take a job."""


class Refused(RuntimeError):
    """It will never take this job as it is."""


class Full(RuntimeError):
    """It takes this job when others have ended."""
