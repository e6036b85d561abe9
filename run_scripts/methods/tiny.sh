# A smaller OFA without exits (MuE Table 1, OFA-tiny): TINY names its pretrained checkpoint, TINY_MODEL its sizes (default: ARCH's with
# four layers each). Its expected time is against the layers of the model that it is compared with.
START=${TINY:?method tiny needs TINY=…, the pretrained checkpoint of the smaller model}
read -ra MODEL <<< "${TINY_MODEL:---encoder-layers 4 --decoder-layers 4}"
LOSS=(--criterion mue_loss --layer-weights last)
RULE=full
REFERENCE=1
