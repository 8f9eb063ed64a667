from . import follow as follow, plan as plan, scale as scale, study as study, suite as suite
from .config import (
    FollowConfig as FollowConfig,
    PlanConfig as PlanConfig,
    ScaleConfig as ScaleConfig,
    StudyConfig as StudyConfig,
    SuiteConfig as SuiteConfig,
)
