from . import follow as follow, plan as plan, scale as scale, study as study, suite as suite
