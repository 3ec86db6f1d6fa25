"""Every error a user can meet. Each message carries the offending value and the fix.

ProxykdError
 ├─ ConfigError        a config that cannot run
 ├─ CorpusError        unreadable, empty or contradictory training text
 ├─ TemplateError      a chat template that does not round-trip
 ├─ AlignmentError     a text that a tokenizer does not keep byte for byte
 ├─ ModelError         a model or tokenizer that does not fit the run
 ├─ RunError           a run directory in the wrong state
 ├─ RunStoppedError    somebody asked the run to stop
 ├─ StaleEpochError    another coordinator has taken the run over
 ├─ IntegrityError     a file that is not what its checksum or manifest says
 ├─ StorageError       the run's storage takes no more: it is full, or has become read-only
 ├─ GateError          a numerical gate was broken: the run stops before it trains on nonsense
 ├─ TeacherError       the teacher could not be reached or refused
 ├─ EngineError        the engine died or hangs; a replacement is on its way
 ├─ BenchmarkError     a benchmark or record of one that is unknown or absent
 └─ ResourceError      the machine or cluster lacks what the run needs
"""


class ProxykdError(Exception):
    """Base class: the CLI prints its message alone and exits 2."""


class ConfigError(ProxykdError):
    pass


class CorpusError(ProxykdError):
    pass


class TemplateError(ProxykdError):
    pass


class AlignmentError(ProxykdError):
    pass


class ModelError(ProxykdError):
    pass


class RunError(ProxykdError):
    pass


class StaleEpochError(RunError):
    pass


class RunStoppedError(RunError):
    pass


class IntegrityError(ProxykdError):
    pass


class StorageError(ProxykdError):
    pass


class GateError(ProxykdError):
    pass


class TeacherError(ProxykdError):
    pass


class EngineError(ProxykdError):
    pass


class BenchmarkError(ProxykdError):
    pass


class ResourceError(ProxykdError):
    pass
