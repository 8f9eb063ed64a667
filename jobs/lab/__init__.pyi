from . import follow as follow, scale as scale, suite as suite
