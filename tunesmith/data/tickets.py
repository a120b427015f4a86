"""The quickstart's task, generated here: a customer's ticket becomes one strict JSON object.

    The coffee grinder broke after two days (order C-4821). Please send me a new one. No rush.
    {"category":"defect","product":"coffee grinder","order":"C-4821","urgency":"low","wants":"replacement"}

A ticket is a layout filled with phrases. Every phrase, layout, product and order number belongs to one split only, so
the test measures wordings that training never showed: held out by construction, not by luck. Nothing but wording gives
the fields away: product and order are copied, category, urgency and wish must be understood.
"""

import json
import random
from dataclasses import dataclass

INSTRUCTION = "Read the support ticket and write JSON with the keys category, product, order, urgency, wants."
TRAIN_ROWS, TEST_ROWS = 400, 40
CHINESE_EVERY = 20  # one ticket in so many is Chinese: SmolLM2 spends two to three tokens on a character


@dataclass(frozen=True, slots=True)
class Phrases:
    """Wordings of one meaning; the two splits share none."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Language:
    """The grammar of one language. Layouts name {problem} {wish} {urgency} {order}; problems name {product}."""

    layouts: Phrases  # with {order}: the order's mention, or nothing
    openings: Phrases
    products: Phrases
    orders: Phrases
    problems: dict[str, Phrases]
    wishes: dict[str, Phrases]
    urgencies: dict[str, Phrases]
    separator: str


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

ENGLISH = Language(
    layouts=Phrases(
        train=(
            "{opening} {problem} {order} {wish} {urgency}",
            "{opening} {order} {problem} {urgency} {wish}",
            "{problem} {order} {urgency} {wish}",
            "{problem} {wish} {order} {urgency}",
            "{order} {problem} {wish} {urgency}",
            "{urgency} {problem} {wish} {order}",
            "{opening} {wish} {problem} {order} {urgency}",
        ),
        test=(
            "{opening} {problem} {wish} {urgency} {order}",
            "{order} {urgency} {problem} {wish}",
            "{problem} {urgency} {order} {wish}",
        ),
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
    urgencies={
        "low": Phrases(
            train=(
                "There is no hurry.",
                "No rush.",
                "It can wait.",
                "Take your time.",
                "Answer whenever you can.",
                "This is not urgent.",
                "Next month is fine too.",
                "I am not in a hurry.",
                "Whenever it suits you.",
                "Any day is fine with me.",
                "I can live without it for now.",
                "Nothing depends on it.",
                "Deal with other people first.",
                "I do not mind waiting.",
            ),
            test=("You do not need to hurry.", "It is fine if this waits.", "I have plenty of time.", "This is really not urgent."),
        ),
        "normal": Phrases(train=("",), test=("",)),
        "high": Phrases(
            train=(
                "This is urgent.",
                "I need an answer today.",
                "Please hurry.",
                "It must be solved by tomorrow.",
                "Act at once, please.",
                "I cannot wait any longer.",
                "I leave tonight, so be quick.",
                "As soon as possible!",
                "It is an emergency.",
                "I am in a great hurry.",
                "Please deal with this right now.",
                "Time is running out.",
                "I have to have it before the weekend.",
                "This has to be sorted out today.",
                "Reply within the hour, please.",
                "Every day counts.",
            ),
            test=("I am in a hurry, it is urgent.", "Please act right away.", "I need help today.", "It cannot wait until tomorrow."),
        ),
    },
    separator=" ",
)

CHINESE = Language(
    layouts=Phrases(
        train=("{opening}{order}{problem}{wish}{urgency}", "{problem}{order}{wish}{urgency}", "{order}{problem}{urgency}{wish}"),
        test=("{opening}{problem}{wish}{urgency}{order}",),
    ),
    openings=Phrases(train=("你好，", "您好，", "请问一下，", "店家你好，", "打扰了，"), test=("客服您好，",)),
    products=Phrases(
        train=("水壶", "台灯", "背包", "耳机", "手表", "雨伞", "枕头", "相机", "音箱", "帐篷", "镜子", "鞋子", "毛毯", "吉他"),
        test=("键盘", "手机"),
    ),
    orders=Phrases(train=("订单{number}。", "单号{number}。"), test=("订单号{number}。",)),
    problems={
        "delivery": Phrases(train=("{product}还没到。", "{product}一直没送来。", "没收到{product}。"), test=("{product}还没送到。",)),
        "defect": Phrases(train=("{product}坏了。", "{product}不能用。", "{product}有裂缝。"), test=("{product}用一天就坏了。",)),
        "billing": Phrases(train=("{product}多收了钱。", "{product}扣款两次。", "{product}账单不对。"), test=("{product}扣了两次钱。",)),
        "wrong_item": Phrases(train=("{product}发错了。", "{product}颜色不对。", "{product}尺寸错了。"), test=("{product}颜色发错了。",)),
    },
    wishes={
        "refund": Phrases(train=("请退款。", "我要退钱。"), test=("我要退款。",)),
        "replacement": Phrases(train=("请换一个。", "我要换新的。"), test=("请换个新的。",)),
        "repair": Phrases(train=("请修一下。", "能修吗？"), test=("请帮我修。",)),
        "information": Phrases(train=("怎么回事？", "请告诉我原因。"), test=("请问怎么回事？",)),
        "cancellation": Phrases(train=("请取消订单。", "我要取消。"), test=("我要取消订单。",)),
    },
    urgencies={
        "low": Phrases(train=("不急。", "慢慢来。"), test=("这个不急。",)),
        "normal": Phrases(train=("",), test=("",)),
        "high": Phrases(train=("很急！", "请马上处理。"), test=("非常急！",)),
    },
    separator="",
)


def train_rows() -> list[dict[str, str]]:
    """400 rows {prompt, completion}; the same on every machine."""
    return _rows("train", TRAIN_ROWS, seed=1)


def test_rows() -> list[dict[str, str]]:
    """40 rows {prompt, completion} in wordings, layouts, products and order numbers that `train_rows` never uses."""
    return _rows("test", TEST_ROWS, seed=2)


def _rows(split: str, count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    pairs: list[tuple[str, str]] = []
    while len(rows) < count:
        if not pairs:  # every meaning comes up equally often
            pairs = draw.sample(PAIRS, len(PAIRS))
        language = CHINESE if len(rows) % CHINESE_EVERY == CHINESE_EVERY - 1 else ENGLISH
        row = _ticket(draw, language, split, *pairs.pop())
        rows.setdefault(row["prompt"], row)
    return list(rows.values())


def _ticket(draw: random.Random, language: Language, split: str, category: str, wants: str) -> dict[str, str]:
    def say(phrases: Phrases) -> str:
        return draw.choice(getattr(phrases, split))

    product, urgency = say(language.products), draw.choice(("low", "normal", "high"))
    order = _order(draw, split) if draw.random() < 0.75 else None
    parts = {
        "opening": say(language.openings),
        "problem": say(language.problems[category]).format(product=product),
        "wish": say(language.wishes[wants]),
        "urgency": say(language.urgencies[urgency]),
        "order": say(language.orders).format(number=order) if order else "",
    }
    text = say(language.layouts).format(**parts)
    answer = {"category": category, "product": product, "order": order, "urgency": urgency, "wants": wants}
    return {
        "prompt": f"{INSTRUCTION}\n\n{language.separator.join(text.split())}",
        "completion": json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
    }


def _order(draw: random.Random, split: str) -> str:
    """Even numbers are trained on, odd ones tested on."""
    return f"{draw.choice('ABCDEFGH')}-{2 * draw.randint(500, 4999) + (split == 'test')}"
