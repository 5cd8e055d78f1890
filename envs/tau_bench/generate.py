"""A small shop for the embedded default: users, products and orders as the retail domain has them, and tasks.

The tasks are of five kinds. Their instructions name everything but the ids of items, which have to be looked up, so a
scripted expert can follow them without knowing the solution (`envs.tau_bench.expert`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envs.tau_bench.database import Data, Row

VERSION = 1  # of the shop and its tasks; changes with them
USERS, ORDERS_EACH = 60, 3
FIRST_NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gwen", "Hugo", "Iris", "Jonas", "Kira", "Leo")
LAST_NAMES = ("Adler", "Berg", "Cole", "Dahl", "Ellis", "Frost", "Gray", "Hill", "Ito", "Jones")
CITIES = {"Austin": "TX", "Boston": "MA", "Denver": "CO", "Fresno": "CA", "Miami": "FL", "Salem": "OR"}
STREETS = ("Oak Street", "Hill Road", "Lake Drive", "Elm Avenue", "Park Lane")
PRODUCTS = {
    "Lamp": ("color", ("black", "white", "red")),
    "Mug": ("size", ("small", "medium", "large")),
    "Backpack": ("color", ("green", "grey", "navy")),
    "Keyboard": ("switches", ("clicky", "linear", "tactile")),
    "Blanket": ("material", ("cotton", "wool", "fleece")),
    "Kettle": ("capacity", ("1 l", "1.5 l", "2 l")),
}
POLICY = """# Shop agent policy

Help the user with orders. A pending order can be cancelled, and its address and payment method can be changed; items of
a delivered order can be returned. Do what the user asks for, and nothing else, and tell the user when it is done."""


@dataclass(frozen=True)
class Shop:
    """The database and what is asked for in it."""

    data: Data
    tasks: tuple[dict[str, Any], ...]  # as the published ones: instruction, actions, outputs


@lru_cache(maxsize=1)
def make_shop() -> Shop:
    """The same at every call."""
    rng = random.Random(VERSION)
    products = dict(_products(rng))
    users: dict[str, Row] = {}
    orders: dict[str, Row] = {}
    for number in range(USERS):
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        user_id = f"{first}_{last}_{1000 + number}".lower()
        methods: Row = {f"credit_card_{number + 100}": {"source": "credit_card", "id": f"credit_card_{number + 100}"}}
        if rng.random() < 0.7:
            card = f"gift_card_{number + 100}"
            methods[card] = {"source": "gift_card", "balance": rng.randrange(20, 900), "id": card}
        users[user_id] = {
            "name": {"first_name": first, "last_name": last}, "address": _address(rng),
            "email": f"{user_id}@example.com", "payment_methods": methods, "orders": [],
        }  # fmt: skip
        for _ in range(ORDERS_EACH):
            order = _order(rng, user_id, users[user_id], products, f"#W{len(orders) + 1000}")
            orders[order["order_id"]] = order
            users[user_id]["orders"].append(order["order_id"])
    tasks = tuple(_task(rng, order, users[order["user_id"]]) for order in orders.values() for _ in range(4))
    return Shop(Data({"orders": orders, "products": products, "users": users}), tasks)


def _products(rng: random.Random) -> Iterator[tuple[str, Row]]:
    for number, (name, (option, values)) in enumerate(PRODUCTS.items()):
        product_id = str(500 + number)
        variants = {
            f"{product_id}{place}": {
                "item_id": f"{product_id}{place}", "options": {option: value}, "available": rng.random() < 0.8,
                "price": rng.randrange(10, 200) + 0.5 * rng.randrange(2),
            }
            for place, value in enumerate(values)
        }  # fmt: skip
        yield product_id, {"name": name, "product_id": product_id, "variants": variants}


def _address(rng: random.Random) -> Row:
    city = rng.choice(sorted(CITIES))
    return {
        "address1": f"{rng.randrange(10, 100)} {rng.choice(STREETS)}", "address2": f"Suite {rng.randrange(10, 100)}",
        "city": city, "country": "USA", "state": CITIES[city], "zip": str(rng.randrange(10_000, 99_999)),
    }  # fmt: skip


def _order(rng: random.Random, user_id: str, user: Row, products: dict[str, Row], order_id: str) -> Row:
    items = []
    for product in rng.sample(sorted(products), rng.randrange(1, 4)):
        variant = rng.choice(list(products[product]["variants"].values()))
        items.append(
            {
                "name": products[product]["name"], "product_id": product, "item_id": variant["item_id"],
                "price": variant["price"], "options": variant["options"],
            }
        )  # fmt: skip
    payment = {
        "transaction_type": "payment", "amount": sum(item["price"] for item in items),
        "payment_method_id": rng.choice(list(user["payment_methods"])),
    }  # fmt: skip
    return {
        "order_id": order_id, "user_id": user_id, "address": dict(user["address"]), "items": items, "fulfillments": [],
        "status": rng.choice(("pending", "delivered")), "payment_history": [payment],
    }  # fmt: skip


def _task(rng: random.Random, order: Row, user: Row) -> dict[str, Any]:
    """Something that can be asked for about an order."""
    order_id, methods = order["order_id"], list(user["payment_methods"])
    paid = order["payment_history"][0]
    kinds = ["total"]
    if order["status"] == "pending":
        kinds += ["cancel", "address"]
        others = [one for one in methods if one != paid["payment_method_id"]]
        if others and user["payment_methods"][others[0]].get("balance", 10_000) >= paid["amount"]:
            kinds.append("payment")
    else:
        kinds += ["return", "return"]
    kind = rng.choice(kinds)
    outputs: list[str] = []
    calls: dict[str, dict[str, Any]] = {}
    if kind == "total":
        wish = f"What did I pay for order {order_id}?"
        outputs = [str(paid["amount"])]
    elif kind == "cancel":
        verb, reason = rng.choice((("is", "no longer needed"), ("was", "ordered by mistake")))
        wish = f"Cancel order {order_id}, it {verb} {reason}."
        calls["cancel_pending_order"] = {"reason": reason}
    elif kind == "address":
        address = _address(rng)
        wish = f"Ship order {order_id} to {', '.join(address.values())}."
        calls["modify_pending_order_address"] = address
    elif kind == "payment":
        method = next(one for one in methods if one != paid["payment_method_id"])
        wish = f"Charge order {order_id} to {method}."
        calls["modify_pending_order_payment"] = {"payment_method_id": method}
    else:
        item, method = rng.choice(order["items"]), paid["payment_method_id"]
        wish = f"Return the {item['name']} of order {order_id} to {method}."
        calls["return_delivered_order_items"] = {"item_ids": [item["item_id"]], "payment_method_id": method}
    name = user["name"]
    who = f"I am {name['first_name']} {name['last_name']}, zip code {user['address']['zip']}."
    actions = [{"name": tool, "kwargs": {"order_id": order_id, **arguments}} for tool, arguments in calls.items()]
    return {"instruction": f"{who} {wish}", "actions": actions, "outputs": outputs}
