"""The tools of the shop: users, orders, and products with variants. Sources of rules and texts: tau-bench (MIT)."""

from __future__ import annotations

import json
from typing import Any

from envs.tau_bench.database import Database, Row
from envs.tau_bench.tools import calculate, get_user_details, named, think, transfer_to_human_agents
from envs.tools.tool import ToolError

REASONS = ["no longer needed", "ordered by mistake"]


@named
def find_user_id_by_email(database: Database, email: Any) -> str:
    """In any case."""
    for user_id, user in database.rows("users"):
        if user["email"].lower() == email.lower():
            return user_id
    raise ToolError("user not found")


@named
def find_user_id_by_name_zip(database: Database, first_name: Any, last_name: Any, zip: Any) -> str:  # noqa: A002
    """Names in any case."""
    for user_id, user in database.rows("users"):
        first, last = user["name"]["first_name"].lower(), user["name"]["last_name"].lower()
        if first == first_name.lower() and last == last_name.lower() and user["address"]["zip"] == zip:
            return user_id
    raise ToolError("user not found")


@named
def get_order_details(database: Database, order_id: Any) -> str:
    """An order as JSON."""
    if not database.has("orders", order_id):
        raise ToolError("order not found")
    return json.dumps(database.read("orders", order_id))


@named
def get_product_details(database: Database, product_id: Any) -> str:
    """A product as JSON."""
    if not database.has("products", product_id):
        raise ToolError("product not found")
    return json.dumps(database.read("products", product_id))


@named
def list_all_product_types(database: Database) -> str:
    """Product ids by name, sorted."""
    ids = {product["name"]: product["product_id"] for _, product in database.rows("products")}
    return json.dumps(dict(sorted(ids.items())))


def _order(database: Database, order_id: Any, status: str, refusal: str) -> Row:
    """An order to read. Raises `ToolError` if there is none, or if it has another status."""
    if not database.has("orders", order_id):
        raise ToolError("order not found")
    order = database.read("orders", order_id)
    if order["status"] != status:
        raise ToolError(refusal)
    return order


def _payment_methods(database: Database, order: Row) -> Row:
    methods: Row = database.read("users", order["user_id"])["payment_methods"]
    return methods


def _pay(database: Database, user_id: str, method_id: str, amount: float) -> None:
    """Take an amount from the balance of a gift card."""
    method = database.edit("users", user_id)["payment_methods"][method_id]
    method["balance"] = round(method["balance"] - amount, 2)


@named
def cancel_pending_order(database: Database, order_id: Any, reason: Any) -> str:
    """All payments are refunded; gift cards have their money at once."""
    _order(database, order_id, "pending", "non-pending order cannot be cancelled")
    if reason not in REASONS:
        raise ToolError("invalid reason")
    order = database.edit("orders", order_id)
    refunds = []
    for payment in order["payment_history"]:
        method_id = payment["payment_method_id"]
        refunds.append({"transaction_type": "refund", "amount": payment["amount"], "payment_method_id": method_id})
        if "gift_card" in method_id:
            method = database.edit("users", order["user_id"])["payment_methods"][method_id]
            method["balance"] = round(method["balance"] + payment["amount"], 2)
    order["status"] = "cancelled"
    order["cancel_reason"] = reason
    order["payment_history"].extend(refunds)
    return json.dumps(order)


def _check_items(order: Row, item_ids: Any, refusal: str) -> None:
    """Raises `ToolError` if an item is asked for more often than the order has it."""
    ordered = [item["item_id"] for item in order["items"]]
    for item_id in item_ids:
        if item_ids.count(item_id) > ordered.count(item_id):
            raise ToolError(refusal.format(item_id))


def _item(order: Row, item_id: Any) -> Row:
    """The first item of an order with this id."""
    found: Row = [item for item in order["items"] if item["item_id"] == item_id][0]  # noqa: RUF015 - its error is the reference's
    return found


def _price_difference(database: Database, order: Row, item_ids: Any, new_item_ids: Any) -> float:
    """Of the new items to the old ones. Raises `ToolError` if they cannot be exchanged."""
    _check_items(order, item_ids, "{} not found")
    if len(item_ids) != len(new_item_ids):
        raise ToolError("the number of items to be exchanged should match")
    difference = 0
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
        item = _item(order, item_id)
        variants = database.read("products", item["product_id"])["variants"]
        if not (new_item_id in variants and variants[new_item_id]["available"]):
            raise ToolError(f"new item {new_item_id} not found or available")
        difference += variants[new_item_id]["price"] - item["price"]
    return difference


@named
def exchange_delivered_order_items(
    database: Database, order_id: Any, item_ids: Any, new_item_ids: Any, payment_method_id: Any
) -> str:
    """The exchange is requested; nothing is paid yet."""
    order = _order(database, order_id, "delivered", "non-delivered order cannot be exchanged")
    difference = round(_price_difference(database, order, item_ids, new_item_ids), 2)
    methods = _payment_methods(database, order)
    if payment_method_id not in methods:
        raise ToolError("payment method not found")
    method = methods[payment_method_id]
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the price difference")
    order = database.edit("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"] = sorted(item_ids)
    order["exchange_new_items"] = sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return json.dumps(order)


@named
def modify_pending_order_address(
    database: Database,
    order_id: Any,
    address1: Any,
    address2: Any,
    city: Any,
    state: Any,
    country: Any,
    zip: Any,  # noqa: A002
) -> str:
    """Where it is shipped to."""
    _order(database, order_id, "pending", "non-pending order cannot be modified")
    order = database.edit("orders", order_id)
    order["address"] = {
        "address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip,
    }  # fmt: skip
    return json.dumps(order)


@named
def modify_pending_order_items(
    database: Database, order_id: Any, item_ids: Any, new_item_ids: Any, payment_method_id: Any
) -> str:
    """The difference is paid or refunded at once; it works once."""
    order = _order(database, order_id, "pending", "non-pending order cannot be modified")
    difference = _price_difference(database, order, item_ids, new_item_ids)
    methods = _payment_methods(database, order)
    if payment_method_id not in methods:
        raise ToolError("payment method not found")
    method = methods[payment_method_id]
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the new item")
    order = database.edit("orders", order_id)
    order["payment_history"].append(
        {
            "transaction_type": "payment" if difference > 0 else "refund", "amount": abs(difference),
            "payment_method_id": payment_method_id,
        }
    )  # fmt: skip
    if method["source"] == "gift_card":
        _pay(database, order["user_id"], payment_method_id, difference)
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
        item = _item(order, item_id)  # one that was changed before may be found again, as in the reference
        variant = database.read("products", item["product_id"])["variants"][new_item_id]
        item.update(item_id=new_item_id, price=variant["price"], options=variant["options"])
    order["status"] = "pending (item modified)"
    return json.dumps(order)


@named
def modify_pending_order_payment(database: Database, order_id: Any, payment_method_id: Any) -> str:
    """Another method pays, and the first one is refunded."""
    order = _order(database, order_id, "pending", "non-pending order cannot be modified")
    methods = _payment_methods(database, order)
    if payment_method_id not in methods:
        raise ToolError("payment method not found")
    history = order["payment_history"]
    if len(history) > 1 or history[0]["transaction_type"] != "payment":
        raise ToolError("there should be exactly one payment for a pending order")
    before, amount = history[0]["payment_method_id"], history[0]["amount"]
    if before == payment_method_id:
        raise ToolError("the new payment method should be different from the current one")
    method = methods[payment_method_id]
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolError("insufficient gift card balance to pay for the order")
    order = database.edit("orders", order_id)
    order["payment_history"] += [
        {"transaction_type": "payment", "amount": amount, "payment_method_id": payment_method_id},
        {"transaction_type": "refund", "amount": amount, "payment_method_id": before},
    ]
    if method["source"] == "gift_card":
        _pay(database, order["user_id"], payment_method_id, amount)
    if "gift_card" in before:
        _pay(database, order["user_id"], before, -amount)
    return json.dumps(order)


@named
def modify_user_address(
    database: Database,
    user_id: Any,
    address1: Any,
    address2: Any,
    city: Any,
    state: Any,
    country: Any,
    zip: Any,  # noqa: A002
) -> str:
    """The default address."""
    if not database.has("users", user_id):
        raise ToolError("user not found")
    user = database.edit("users", user_id)
    user["address"] = {
        "address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip,
    }  # fmt: skip
    return json.dumps(user)


@named
def return_delivered_order_items(database: Database, order_id: Any, item_ids: Any, payment_method_id: Any) -> str:
    """The return is requested."""
    order = _order(database, order_id, "delivered", "non-delivered order cannot be returned")
    if payment_method_id not in _payment_methods(database, order):
        raise ToolError("payment method not found")
    first = order["payment_history"][0]["payment_method_id"]
    if "gift_card" not in payment_method_id and payment_method_id != first:
        raise ToolError("payment method should be either the original payment method or a gift card")
    _check_items(order, item_ids, "some item not found")
    order = database.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return json.dumps(order)


FUNCTIONS = (
    calculate, cancel_pending_order, exchange_delivered_order_items, find_user_id_by_email, find_user_id_by_name_zip,
    get_order_details, get_product_details, get_user_details, list_all_product_types, modify_pending_order_address,
    modify_pending_order_items, modify_pending_order_payment, modify_user_address, return_delivered_order_items, think,
    transfer_to_human_agents,
)  # fmt: skip
