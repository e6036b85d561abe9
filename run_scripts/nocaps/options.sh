# NoCaps validation captions: options that its scripts share; OFA's own if its release has them.
# The task is COCO's.
source "$(dirname "${BASH_SOURCE[0]}")/../coco/options.sh"
