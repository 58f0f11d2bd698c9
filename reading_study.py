"""Let readers judge the images: quality, and lesions on CXRs against soft tissue, as in BS-LDM's clinical evaluation.

    python reading_study.py make study.results=runs/batch_lcm_eval    a folder to hand out
    python reading_study.py score study.truth=findings.csv            from the readers' files in study.output/answers

make    reads study.cxr and study.results (several: [runs/ldm_eval,runs/batch_lcm_eval]) and writes
        <study.output>/reading/, a page with its images, which any browser opens from a disk or a USB stick, and
        <study.output>/key.json, which says what is what and stays with whoever scores
score   reads the key, the readers' files in study.answers and study.truth, and writes reading.txt, .md and .tex (image
        quality; precision, recall, F1; McNemar's test; AFROC; weighted kappa; time) and reading.csv (every answer) into
        study.output

data.patient says whose images they are: no two in a row are of one patient. The protocol: docs/reading_study.md.
Exit status 1 where a reader's file, or answers in it, are missing; the rest is scored and written. A tiny study,
seconds on a CPU (an untouched X-ray as the result):

    python reading_study.py make study.results=data/CXR study.output=runs/tiny
"""

import sys

from models import config
from models.runtime import entry
from models.runtime.files import UserError

READS = ("data.root", "data.patient", "runs", "study")
TASKS = ("make", "score")


def main() -> int:
    # settings; the task is the one word among them
    asked = [word for word in sys.argv[1:] if word in TASKS]
    settings = config.parse(__doc__, READS, [word for word in sys.argv[1:] if word not in TASKS])
    if len(asked) != 1:
        raise UserError("say make or score, as in python reading_study.py make study.results=runs/batch_lcm_eval")

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models.reading import folder, scoring

    # the folder for the readers
    if asked == ["make"]:
        print(folder.make(settings))
        return 0

    # their answers
    tables, faults = scoring.score(settings)
    print(tables)
    print(f"written to {settings.study.output}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    entry.run(main)
