"""Tiny releases in the official shapes: every key that the published files have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ofa_exit.cli.prepare import main

COLOURS = ("red", "green", "blue", "black", "white", "yellow")


def prepare(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(path.name + ".manifest.json").read_text(encoding="utf-8"))


def problems(path: Path) -> list[str]:
    return path.with_name(path.name + ".problems.txt").read_text(encoding="utf-8").splitlines()


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def jpeg(path: Path, number: int = 0, side: int = 12) -> bytes:
    """Write an image that differs per number to ``path``. Return its bytes."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (side + number, side), COLOURS[number % len(COLOURS)])
    image.save(buffer, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def coco_image(root: Path, subset: str, image: int) -> bytes:
    return jpeg(root / subset / f"COCO_{subset}_{image:012d}.jpg", image % 50)


KARPATHY = (
    ("train", "train2014", 9, ["A Dog.", "Two dogs &  a\tcat.\n"]),
    ("restval", "val2014", 42, ["A cat && a dog"]),
    ("val", "val2014", 73, ["A bird", "The bird sings."]),
    ("test", "val2014", 74, ["A fish"]),
)


def coco(root: Path) -> Path:
    """dataset_coco.json and its images."""
    images, sentence = [], 0
    for number, (split, subset, image, captions) in enumerate(KARPATHY):
        coco_image(root, subset, image)
        sentences = []
        for caption in captions:
            tokens = caption.lower().rstrip(".").split()
            sentences.append(
                {"tokens": tokens, "raw": caption, "imgid": number, "sentid": 700 + sentence}
            )
            sentence += 1
        images.append(
            {
                "filepath": subset,
                "sentids": [one["sentid"] for one in sentences],
                "filename": f"COCO_{subset}_{image:012d}.jpg",
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": image,
            }
        )
    return write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def many_coco_images(root: Path, count: int = 30) -> Path:
    """``count`` training images with two captions each."""
    source = coco(root)
    content = json.loads(source.read_text())
    first = content["images"][0]
    for at in range(count):
        image = 100 + at
        coco_image(root, "train2014", image)
        sentences = [
            {"tokens": [], "raw": f"picture {at} {of}", "imgid": image, "sentid": 10 * image + of}
            for of in range(2)
        ]
        name = f"COCO_train2014_{image:012d}.jpg"
        content["images"].append(
            {**first, "filename": name, "cocoid": image, "sentences": sentences}
        )
    source.write_text(json.dumps(content))
    return source


def nocaps(root: Path) -> Path:
    domains = ("in-domain", "near-domain", "out-domain", "near-domain")
    images, annotations = [], []
    for number, domain in enumerate(domains):
        name = f"00{number}3ea2087020901"
        jpeg(root / "images" / f"{name}.jpg", number)
        images.append(
            {
                "id": number,
                "open_images_id": name,
                "height": 12,
                "width": 12 + number,
                "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}.jpg",
                "date_captured": "2018-11-06 11:04:33",
                "domain": domain,
                "file_name": f"{name}.jpg",
                "license": 0,
            }
        )
        annotations += [
            {"image_id": number, "id": 10 * number + at, "caption": f"Thing {number} seen by {at}."}
            for at in range(10)
        ]
    content = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    return write_json(root / "nocaps_val_4500_captions.json", content)


def snli_entry(image: str, number: int, label: str) -> dict[str, Any]:
    return {
        "Flickr30K_ID": image,
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#{number}",
        "gold_label": label,
        "pairID": f"{image}.jpg#{number}r1{label[0]}",
        "sentence1": "A man in red.",
        "sentence1_binary_parse": "( ( A man ) ( in red ) )",
        "sentence1_parse": "(ROOT (NP A man))",
        "sentence2": f"The man says {number}.",
        "sentence2_binary_parse": "( x )",
        "sentence2_parse": "(ROOT x)",
    }


def snli_ve(root: Path) -> None:
    (root / "flickr30k-images").mkdir(parents=True)
    for at, split in enumerate(("train", "dev", "test")):
        image = f"100009279{at}"
        jpeg(root / "flickr30k-images" / f"{image}.jpg", at)
        labels = ("entailment", "neutral", "contradiction")
        lines = [json.dumps(snli_entry(image, number, of)) for number, of in enumerate(labels)]
        (root / f"snli_ve_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# Ten annotators each: 6 × net, 2 × netting, …
ANSWERS = (
    ["net"] * 6 + ["netting", "mesh", "netting", "Mesh"],
    ["yes"] * 10,
    ["net"] * 3 + ["yes"] * 7,
)


def vqa_annotation(question: int, image: int, answers: list[str]) -> dict[str, Any]:
    return {
        "question_type": "what is this",
        "multiple_choice_answer": max(answers, key=answers.count),
        "answers": [
            {"answer": answer, "answer_confidence": "maybe", "answer_id": at}
            for at, answer in enumerate(answers, start=1)
        ],
        "image_id": image,
        "answer_type": "other",
        "question_id": question,
    }


def vqa(root: Path) -> None:
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco"}
    for subset, images in (("train2014", (458752, 9)), ("val2014", (42,)), ("test2015", (1,))):
        asked, told = [], []
        for image in images:
            coco_image(root, subset, image)
            for at in range(2 if subset == "train2014" else 1):
                number = image * 1000 + at
                asked.append(
                    {"image_id": image, "question": f"What is IT {at}?", "question_id": number}
                )
                told.append(vqa_annotation(number, image, ANSWERS[(image + at) % 3]))
        # The order of the two files is not promised to be the same.
        told.reverse()
        questions = {**head, "license": {}, "data_subtype": subset, "questions": asked}
        subsets = [subset] if subset != "test2015" else [subset, "test-dev2015"]
        for name in subsets:
            write_json(root / f"v2_OpenEnded_mscoco_{name}_questions.json", questions)
        if subset != "test2015":
            annotations = {**head, "license": {}, "data_subtype": subset, "annotations": told}
            write_json(root / f"v2_mscoco_{subset}_annotations.json", annotations)


def okvqa(root: Path) -> None:
    for subset, image in (("train2014", 51606), ("val2014", 297147)):
        coco_image(root, subset, image)
        number = image * 10 + 5
        question = {"image_id": image, "question": "What is the hairstyle?", "question_id": number}
        answers = [
            {
                "answer_id": at,
                "raw_answer": "pony tails" if at < 5 else "ponytail",
                "answer_confidence": "yes",
                "answer": "pony tail",
            }
            for at in range(1, 11)
        ]
        annotation = {
            "image_id": image,
            "answer_type": "other",
            "question_type": "four",
            "question_id": number,
            "answers": answers,
            "confidence": 3,
        }
        write_json(
            root / f"OpenEnded_mscoco_{subset}_questions.json",
            {"task_type": "Open-Ended", "license": {}, "info": {}, "questions": [question]},
        )
        write_json(
            root / f"mscoco_{subset}_annotations.json",
            {"question_types": {"four": "Brands"}, "info": {}, "annotations": [annotation]},
        )


def gqa(root: Path) -> None:
    for at, split in enumerate(("train", "val", "testdev", "test")):
        image = f"n16131{at}"
        jpeg(root / "images" / f"{image}.jpg", at)
        entry = {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
            "entailed": ["02930160"],
            "equivalent": ["02930152"],
            "question": "Is the sky dark?",
            "imageId": image,
            "isBalanced": True,
            "groups": {"global": None, "local": "06-sky_dark"},
            "answer": "Yes",
            "semanticStr": "select: sky (2486325)->verify color: dark [0]",
            "annotations": {"answer": {}, "question": {"2": "2486325"}, "fullAnswer": {}},
            "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
            "fullAnswer": "Yes, the sky is dark.",
        }
        if split == "test":
            entry = {key: entry[key] for key in ("question", "imageId", "isBalanced")}
        write_json(root / f"{split}_balanced_questions.json", {f"0293015{at}": entry})


def vizwiz(root: Path) -> None:
    for split in ("train", "val", "test"):
        name = f"VizWiz_{split}_00000000.jpg"
        jpeg(root / split / name)
        entry: dict[str, Any] = {"image": name, "question": "What's the name of this product?"}
        if split != "test":
            given = ["basil leaves", "basil leaves", "basil", "Basil", ""] + ["unanswerable"] * 5
            entry.update(
                answers=[{"answer": answer, "answer_confidence": "yes"} for answer in given],
                answer_type="other",
                answerable=1,
            )
        write_json(root / "Annotations" / f"{split}.json", [entry])


ROUNDS = {"train": 10, "val": 10, "test": 3}


def visdial(root: Path) -> None:
    """Answer number n reads ``answer n``; the true one of round r (from 1) stands at r - 1."""
    questions = [f"is it {at}" for at in range(12)]
    answers = [f"answer {at}" for at in range(120)]
    for split, image in (("train", 378466), ("val", 284), ("test", 1)):
        dialog = []
        for at in range(ROUNDS[split]):
            options = [(at + other) % 120 for other in range(100)]
            one: dict[str, Any] = {"question": at, "answer": at + at}
            if split == "train" or split == "val":
                one.update(answer_options=options, gt_index=at)
            elif at == ROUNDS[split] - 1:
                one = {"question": at, "answer_options": options}
            dialog.append(one)
        caption = "a man with a dog ."
        # The order of the keys differs between the published files.
        data = {
            "questions": questions,
            "answers": answers,
            "dialogs": [{"image_id": image, "caption": caption, "dialog": dialog}],
        }
        if split == "val":
            data = dict(reversed(data.items()))
        content = {"version": "1.0", "split": f"{split}2018", "data": data}
        write_json(root / f"visdial_1.0_{split}.json", content)
        if split == "train":
            coco_image(root, "val2014", image)
        else:
            folder = f"VisualDialog_{split}2018"
            jpeg(root / folder / f"{folder}_{image:012d}.jpg")
    relevance = [0.0] * 100
    relevance[4], relevance[7] = 1.0, 0.4
    write_json(
        root / "visdial_1.0_val_dense_annotations.json",
        [{"image_id": 284, "round_id": 5, "gt_relevance": relevance}],
    )


RSICD = (
    ("train", "airport_1.jpg", ["Many planes .", "many planes .", "a runway .", ".", "1 ."]),
    ("train", "00002.jpg", ["a lake .", "a lake .", "two lakes .", "a lake .", "a lake ."]),
    ("val", "park_7.jpg", ["a green park .", "trees .", "a green park .", "trees .", "a park ."]),
    ("test", "bridge_59.jpg", ["a bridge .", "a bridge .", ".", "a road .", "a river ."]),
)


def rsicd(root: Path, side: int = 12) -> Path:
    """dataset_rsicd.json and its images, which are squares of ``side`` pixels."""
    images = []
    for number, (split, name, captions) in enumerate(RSICD):
        jpeg(root / "RSICD_images" / name, number, side)
        sentences = [
            {
                "tokens": caption.rstrip(".").lower().split(),
                "raw": caption,
                "imgid": number,
                "sentid": 5 * number + at,
            }
            for at, caption in enumerate(captions)
        ]
        images.append(
            {
                "filename": name,
                "imgid": number,
                "split": split,
                "sentids": [one["sentid"] for one in sentences],
                "sentences": sentences,
            }
        )
    return write_json(root / "dataset_rsicd.json", {"images": images, "dataset": "RSICD"})


# qid, phrase_type, qid_linked_id (those that begin with v fall into valid.tsv), image, question,
# answer, answer_type. The last training question is in the test split, and one stands twice.
VQA_RAD = (
    ("0", "freeform", "t1", 1, "Is it\ta lung? ", "Yes", "CLOSED"),
    (1, "para", "t1", 1, "Does this show a lung?", " yes ", "CLOSED "),
    (2, "freeform", "v7", 2, "Where is the mass?", "Left  lobe", "OPEN"),
    (3, "para", "v7", 2, "Where does the mass lie?", "left lobe", "OPEN"),
    (4, "freeform", "t4", 2, "How many kidneys?", 2, "OPEN"),
    (5, "freeform", "t5", 2, "how many  kidneys?", "2", "OPEN"),
    (6, "freeform", "t6", 1, "Is it normal?", "No", "CLOSED"),
    (7, "test_freeform", "x1", 1, "is it normal?", "no", "CLOSED"),
    (8, "test_para", "x1", 1, "What plane is this?", "Axial", "OPEN"),
)


def vqa_rad(root: Path) -> Path:
    """VQA_RAD Dataset Public.json and its images, one of them without a question."""
    folder = root / "VQA_RAD Image Folder"
    for number in (1, 2, 3):
        jpeg(folder / f"synpic{number}.jpg", number)
    entries = [
        {
            "qid": qid,
            "phrase_type": phrase,
            "qid_linked_id": linked,
            "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e",
            "image_name": f"synpic{image}.jpg",
            "image_organ": "CHEST",
            "evaluation": "not evaluated",
            "question": question,
            "question_rephrase": "NULL",
            "question_relation": "NULL",
            "question_frame": "NULL",
            "question_type": "PRES",
            "answer": answer,
            "answer_type": kind,
        }
        for qid, phrase, linked, image, question, answer, kind in VQA_RAD
    ]
    return write_json(root / "VQA_RAD Dataset Public.json", entries)
