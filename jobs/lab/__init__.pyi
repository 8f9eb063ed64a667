from . import follow as follow, scale as scale, study as study, suite as suite
