"""The quickstart's task, generated here: a customer's ticket becomes one strict JSON object.

    The coffee grinder broke after two days. (C-4821) Please send me a new one.
    {"category":"defect","product":"coffee grinder","order":"C-4821","wants":"replacement"}

A ticket is a layout filled with phrases. Every phrase, layout, product and order number belongs to one split only, so
the test measures wordings that training never showed: held out by construction, not by luck. Nothing but wording gives
the fields away: product and order are copied, category and wish must be understood. Rows are short, since a first look on two
slow cores should take minutes: about 80 tokens of SmolLM2, with a system message of its own in place of the model's longer one.
"""

import json
import random
from dataclasses import dataclass

INSTRUCTION = "Write the support ticket as JSON: category, product, order, wants."
TRAIN_ROWS, TEST_ROWS = 400, 32


@dataclass(frozen=True, slots=True)
class Phrases:
    """Wordings of one meaning; the two splits share none."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Layouts name {problem} {wish} {order}; problems name {product}."""

    layouts: Phrases  # with {order}: the order's mention, or nothing
    openings: Phrases
    products: Phrases
    orders: Phrases
    problems: dict[str, Phrases]
    wishes: dict[str, Phrases]


# which wish makes sense for which problem
PAIRS = (
    ("delivery", "refund"),
    ("delivery", "replacement"),
    ("delivery", "information"),
    ("delivery", "cancellation"),
    ("defect", "refund"),
    ("defect", "replacement"),
    ("defect", "repair"),
    ("defect", "information"),
    ("billing", "refund"),
    ("billing", "information"),
    ("billing", "cancellation"),
    ("wrong_item", "refund"),
    ("wrong_item", "replacement"),
    ("wrong_item", "information"),
)

ENGLISH = Grammar(
    layouts=Phrases(
        train=(
            "{opening} {problem} {order} {wish}",
            "{opening} {order} {problem} {wish}",
            "{problem} {order} {wish}",
            "{problem} {wish} {order}",
            "{order} {problem} {wish}",
            "{opening} {wish} {problem} {order}",
        ),
        test=("{opening} {problem} {wish} {order}", "{wish} {order} {problem}", "{opening} {order} {wish} {problem}"),
    ),
    openings=Phrases(
        train=("Hello,", "Hi there,", "Dear team,", "Good morning.", "Hi!", "To customer service:", "Hey,"),
        test=("Hello support,", "Good evening,", "Dear shop,"),
    ),
    products=Phrases(
        train=(
            "kettle",
            "toaster",
            "desk lamp",
            "coffee grinder",
            "backpack",
            "phone case",
            "keyboard",
            "rain jacket",
            "bike helmet",
            "blender",
            "headset",
            "garden hose",
            "wall clock",
            "yoga mat",
            "office chair",
            "water bottle",
            "camera strap",
            "sleeping bag",
            "hair dryer",
            "bread knife",
            "board game",
            "running belt",
            "wool blanket",
            "laptop stand",
            "baby monitor",
            "paper shredder",
            "tea pot",
            "winter hat",
            "suitcase",
            "printer",
            "drill",
            "mirror",
            "tent",
            "router",
            "guitar",
            "bookshelf",
            "frying pan",
            "smart watch",
            "night light",
            "pillow",
            "tripod",
            "doorbell",
            "fish tank",
            "step ladder",
            "cutting board",
            "lunch box",
            "space heater",
            "picture frame",
            "shower curtain",
            "tool box",
            "bird feeder",
            "chess set",
            "car seat",
            "air pump",
            "jump rope",
            "spice rack",
            "towel",
            "radio",
            "fan",
            "flashlight",
            "umbrella",
            "bicycle",
            "microscope",
            "thermometer",
            "sofa",
            "carpet",
            "rug",
            "violin",
            "jacket",
            "sweater",
            "belt",
            "wallet",
            "mouse",
            "monitor",
            "hard drive",
            "oven",
            "freezer",
            "juicer",
            "scale",
            "candle holder",
        ),
        test=(
            "vacuum cleaner",
            "coffee machine",
            "wall lamp",
            "tablet",
            "bike lock",
            "rice cooker",
            "rucksack",
            "garden chair",
            "webcam",
            "phone charger",
            "wool scarf",
            "speaker",
        ),
    ),
    orders=Phrases(
        train=(
            "My order is {number}.",
            "Order {number}.",
            "The order number is {number}.",
            "It is about order {number}.",
            "Reference: {number}.",
            "I ordered it as {number}.",
            "({number})",
        ),
        test=("Order number: {number}.", "This concerns order {number}.", "My reference is {number}."),
    ),
    problems={
        "delivery": Phrases(
            train=(
                "The {product} still has not arrived.",
                "I have been waiting two weeks for my {product}.",
                "The parcel with the {product} got lost.",
                "Tracking for the {product} has not moved for days.",
                "My {product} should have come on Monday.",
                "The courier never brought the {product}.",
                "The {product} was due last week and nothing came.",
                "There is no sign of the {product} yet.",
                "Your driver left the {product} at some other house.",
                "The {product} is five days late.",
                "It says the {product} was delivered, but it is not here.",
                "The shipment of my {product} is delayed again.",
            ),
            test=(
                "The {product} was supposed to come days ago and is still not here.",
                "I am still waiting for my {product} to be delivered.",
                "The {product} never arrived at my house.",
                "The package with the {product} is late.",
            ),
        ),
        "defect": Phrases(
            train=(
                "The {product} does not work.",
                "The {product} broke after two days.",
                "My {product} came with a crack.",
                "The {product} fell apart in my hands.",
                "One part of the {product} is broken.",
                "The {product} stopped working yesterday.",
                "The {product} has a hole in it.",
                "My new {product} is faulty.",
                "The {product} was damaged when I opened the box.",
                "The {product} is bent and scratched.",
                "After one use the {product} was dead.",
                "A piece of the {product} snapped off.",
            ),
            test=(
                "My {product} broke after only one week.",
                "The {product} has stopped working.",
                "There is a big crack in the {product}.",
                "The {product} was already broken in the box.",
            ),
        ),
        "billing": Phrases(
            train=(
                "I was charged twice for the {product}.",
                "The invoice for the {product} shows the wrong amount.",
                "You took too much money for the {product}.",
                "My card was billed again for the {product}.",
                "The discount on the {product} is missing from my bill.",
                "The price on the bill for the {product} is not what you advertised.",
                "I see two payments for one {product}.",
                "My bank shows a strange fee for the {product}.",
                "I paid for the {product}, but you say I did not pay.",
                "The tax on the {product} was added two times.",
                "The invoice lists three of the {product}, I bought one.",
                "My voucher was not counted when I paid for the {product}.",
            ),
            test=(
                "My card was charged two times for the {product}.",
                "The bill for the {product} has the wrong amount on it.",
                "I paid too much for the {product}.",
                "There is an extra payment for the {product} on my card.",
            ),
        ),
        "wrong_item": Phrases(
            train=(
                "I ordered the {product} but got something else.",
                "You sent another model instead of the {product}.",
                "The {product} has the wrong colour.",
                "The {product} came in the wrong size.",
                "This is not the {product} that I chose.",
                "There was another article in the box, not the {product}.",
                "I wanted the {product}, and a different thing came.",
                "You mixed up my {product} with the order of someone else.",
                "The {product} is green, I asked for black.",
                "You packed the wrong version of the {product}.",
                "The label says {product}, inside is another item.",
                "The {product} is much smaller than the one I picked.",
            ),
            test=(
                "Instead of the {product} I got a different item.",
                "The {product} you sent is the wrong colour.",
                "I got something else in place of the {product}.",
                "You sent the {product} in the wrong size.",
            ),
        ),
    },
    wishes={
        "refund": Phrases(
            train=(
                "I want my money back.",
                "Please refund me.",
                "Please pay the amount back to my card.",
                "I ask for a refund.",
                "Send the money back, please.",
                "I expect to get back what I paid.",
                "Can I get my money back?",
                "Please return the payment.",
            ),
            test=("Please give me my money back.", "I would like a refund.", "Please refund what I paid."),
        ),
        "replacement": Phrases(
            train=(
                "Please send me a new one.",
                "I want a replacement.",
                "Can you swap it for the right one?",
                "Please ship another one.",
                "I need you to replace it.",
                "Just send a fresh one.",
                "Could I have a new one instead?",
                "No money back, I want a new one.",
            ),
            test=("Please replace it.", "Could you send me another one?", "I would like a new one."),
        ),
        "repair": Phrases(
            train=(
                "Can you fix it?",
                "Please repair it.",
                "Where can I send it for repair?",
                "I would like to have it mended.",
                "Could a technician mend it?",
                "I want it repaired, not replaced.",
                "Please make it work again.",
            ),
            test=("Could you repair it for me?", "Please fix it.", "I would like to have it repaired."),
        ),
        "information": Phrases(
            train=(
                "Please tell me what happened.",
                "Can you explain this?",
                "What should I do now?",
                "I would like to know why.",
                "Could you check and tell me more?",
                "Please let me know how this goes on.",
                "Do you know anything about it?",
                "What are my options?",
                "I only have a question: how could this happen?",
            ),
            test=("Can you tell me what is going on?", "Please let me know what to do.", "Could you explain what happened?"),
        ),
        "cancellation": Phrases(
            train=(
                "Please cancel the order.",
                "I want to cancel.",
                "Cancel everything, please.",
                "Stop the order, I do not need it any more.",
                "I call the purchase off.",
                "Take my order out of the system.",
                "Can I still cancel it?",
            ),
            test=("Please cancel my order.", "I would like to cancel the purchase.", "Could you cancel this order?"),
        ),
    },
)


def train_rows() -> list[dict[str, str]]:
    """400 rows {system, prompt, completion}; the same on every machine."""
    return _rows("train", TRAIN_ROWS, seed=1)


def test_rows() -> list[dict[str, str]]:
    """32 rows {system, prompt, completion} in wordings, layouts, products and order numbers that `train_rows` never uses."""
    return _rows("test", TEST_ROWS, seed=2)


def _rows(split: str, count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    pairs: list[tuple[str, str]] = []
    while len(rows) < count:
        if not pairs:  # every meaning comes up equally often
            pairs = draw.sample(PAIRS, len(PAIRS))
        row = _ticket(draw, ENGLISH, split, *pairs.pop())
        rows.setdefault(row["prompt"], row)
    return list(rows.values())


def _ticket(draw: random.Random, grammar: Grammar, split: str, category: str, wants: str) -> dict[str, str]:
    def say(phrases: Phrases) -> str:
        return draw.choice(getattr(phrases, split))

    product = say(grammar.products)
    order = _order(draw, split) if draw.random() < 0.6 else None
    parts = {
        "opening": say(grammar.openings),
        "problem": say(grammar.problems[category]).format(product=product),
        "wish": say(grammar.wishes[wants]),
        "order": say(grammar.orders).format(number=order) if order else "",
    }
    text = say(grammar.layouts).format(**parts)
    answer = {"category": category, "product": product, "order": order, "wants": wants}
    return {
        "system": INSTRUCTION,
        "prompt": " ".join(text.split()),
        "completion": json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
    }


def _order(draw: random.Random, split: str) -> str:
    """Even numbers are trained on, odd ones tested on."""
    return f"{draw.choice('ABCDEFGH')}-{2 * draw.randint(500, 4999) + (split == 'test')}"
