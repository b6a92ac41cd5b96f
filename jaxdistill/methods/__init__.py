"""The published methods, one file each: functions from a stage's settings to a `Stage`. `KINDS`
lists them by name."""

from jaxdistill.methods.minilm import relations
from jaxdistill.methods.mobilebert import auxiliary, classify, distill, joint, pretrain, progressive
from jaxdistill.methods.tinybert import intermediate

KINDS = {
    f.__name__: f
    for f in (pretrain, progressive, joint, auxiliary, distill, relations, intermediate, classify)
}
