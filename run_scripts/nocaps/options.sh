# NoCaps validation captions: options that its scripts share; OFA's own if its release has them.
# The task is COCO's. There are no rows to train on: compare.sh takes TRAIN=COCO/train.tsv VALID=COCO/valid.tsv.
PAPER=${PAPER-blipee_nocaps} TEST=${TEST:-valid valid_in_domain valid_near_domain valid_out_domain}
source "$(dirname "${BASH_SOURCE[0]}")/../coco/options.sh"
