from . import follow as follow, plan as plan, scale as scale, suite as suite
