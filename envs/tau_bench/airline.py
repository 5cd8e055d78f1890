"""The tools of the airline: users, flights and reservations. Sources of rules and texts: tau-bench (MIT)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from envs.tau_bench.database import Database, Row
from envs.tau_bench.tools import calculate, get_user_details, named, think, transfer_to_human_agents
from envs.tools.tool import ToolError

AIRPORTS = {
    "SFO": "San Francisco", "JFK": "New York", "LAX": "Los Angeles", "ORD": "Chicago", "DFW": "Dallas",
    "DEN": "Denver", "SEA": "Seattle", "ATL": "Atlanta", "MIA": "Miami", "BOS": "Boston", "PHX": "Phoenix",
    "IAH": "Houston", "LAS": "Las Vegas", "MCO": "Orlando", "EWR": "Newark", "CLT": "Charlotte",
    "MSP": "Minneapolis", "DTW": "Detroit", "PHL": "Philadelphia", "LGA": "LaGuardia",
}  # fmt: skip
NEW_RESERVATIONS = ("HATHAT", "HATHAU", "HATHAV")  # the last one is overwritten by a fourth
NEW_CERTIFICATES = ("certificate_3221322", "certificate_3221323", "certificate_3221324")
NOW = "2024-05-15T15:00:00"


@named
def get_reservation_details(database: Database, reservation_id: Any) -> str:
    """A reservation as JSON."""
    if not database.has("reservations", reservation_id):
        raise ToolError("user not found")  # as in the reference
    return json.dumps(database.read("reservations", reservation_id))


@named
def list_all_airports(database: Database) -> str:  # noqa: ARG001
    """Cities by airport."""
    return json.dumps(AIRPORTS)


def _on(flight: Row, date: Any) -> Row:
    """A flight on a date, without its other dates."""
    return {**{key: value for key, value in flight.items() if key != "dates"}, **flight["dates"][date]}


def _is_available(flight: Row, date: Any) -> bool:
    return bool(flight["dates"][date]["status"] == "available")


@named
def search_direct_flight(database: Database, origin: Any, destination: Any, date: Any) -> str:
    """Flights that are available, as JSON."""
    flights = (flight for _, flight in database.rows("flights"))
    found = [flight for flight in flights if flight["origin"] == origin and flight["destination"] == destination]
    return json.dumps(
        [_on(flight, date) for flight in found if date in flight["dates"] and _is_available(flight, date)]
    )


@named
def search_onestop_flight(database: Database, origin: Any, destination: Any, date: Any) -> str:
    """Pairs of flights that are available, as JSON.

    A second flight on the day after has the seats and prices of the day itself, as in the reference.
    """
    flights = [flight for _, flight in database.rows("flights")]
    second = [flight for flight in flights if flight["destination"] == destination]
    pairs = []
    for one in (flight for flight in flights if flight["origin"] == origin):
        for two in (flight for flight in second if flight["origin"] == one["destination"]):
            arrival = one["scheduled_arrival_time_est"]
            later = f"2024-05-{int(date[-2:]) + 1}" if "+1" in arrival else date
            if arrival > two["scheduled_departure_time_est"] or date not in one["dates"] or later not in two["dates"]:
                continue
            if _is_available(one, date) and _is_available(two, later):
                pairs.append([{**_on(one, date), "date": date}, {**_on(two, date), "date": later}])
    return json.dumps(pairs)


def _fly(database: Database, flight: Row, cabin: Any, passengers: Any) -> Any:
    """Add price and places to a flight that is booked. Returns its price for all. Raises `ToolError`."""
    number = flight["flight_number"]
    if not database.has("flights", number):
        raise ToolError(f"flight {number} not found")
    known = database.read("flights", number)
    if flight["date"] not in known["dates"]:
        raise ToolError(f"flight {number} not found on date {flight['date']}")
    day = known["dates"][flight["date"]]
    if day["status"] != "available":
        raise ToolError(f"flight {number} not available on date {flight['date']}")
    if day["available_seats"][cabin] < len(passengers):
        raise ToolError(f"not enough seats on flight {number}")
    flight["price"] = day["prices"][cabin]
    flight["origin"], flight["destination"] = known["origin"], known["destination"]
    return flight["price"] * len(passengers)


@named
def book_reservation(
    database: Database,
    user_id: Any,
    origin: Any,
    destination: Any,
    flight_type: Any,
    cabin: Any,
    flights: Any,
    passengers: Any,
    payment_methods: Any,
    total_baggages: Any,
    nonfree_baggages: Any,
    insurance: Any,
) -> str:
    """The payments must add up to the price; seats are not taken."""
    if not database.has("users", user_id):
        raise ToolError("user not found")
    free = (one for one in NEW_RESERVATIONS if not database.has("reservations", one))
    reservation_id = next(free, NEW_RESERVATIONS[-1])
    reservation = {
        "reservation_id": reservation_id, "user_id": user_id, "origin": origin, "destination": destination,
        "flight_type": flight_type, "cabin": cabin, "flights": flights, "passengers": passengers,
        "payment_history": payment_methods, "created_at": NOW, "total_baggages": total_baggages,
        "nonfree_baggages": nonfree_baggages, "insurance": insurance,
    }  # fmt: skip
    price = sum(_fly(database, flight, cabin, passengers) for flight in flights)
    if insurance == "yes":
        price += 30 * len(passengers)
    price += 50 * nonfree_baggages
    known = database.read("users", user_id)["payment_methods"]
    for payment in payment_methods:
        method_id, amount = payment["payment_id"], payment["amount"]
        if method_id not in known:
            raise ToolError(f"payment method {method_id} not found")
        if known[method_id]["source"] in ("gift_card", "certificate") and known[method_id]["amount"] < amount:
            raise ToolError(f"not enough balance in payment method {method_id}")
    paid = sum(payment["amount"] for payment in payment_methods)
    if paid != price:
        raise ToolError(f"payment amount does not add up, total price is {price}, but paid {paid}")
    user = database.edit("users", user_id)
    for payment in payment_methods:
        method_id = payment["payment_id"]
        if user["payment_methods"][method_id]["source"] == "gift_card":
            user["payment_methods"][method_id]["amount"] -= payment["amount"]
        elif user["payment_methods"][method_id]["source"] == "certificate":
            del user["payment_methods"][method_id]
    database.add("reservations", reservation_id, reservation)
    user["reservations"].append(reservation_id)
    return json.dumps(reservation)


@named
def cancel_reservation(database: Database, reservation_id: Any) -> str:
    """All payments are noted with the opposite sign."""
    reservation = _reservation(database, reservation_id, change=True)
    reservation["payment_history"] += [
        {"payment_id": payment["payment_id"], "amount": -payment["amount"]}
        for payment in reservation["payment_history"]
    ]
    reservation["status"] = "cancelled"
    return json.dumps(reservation)


def _reservation(database: Database, reservation_id: Any, *, change: bool) -> Row:
    if not database.has("reservations", reservation_id):
        raise ToolError("reservation not found")
    return (database.edit if change else database.read)("reservations", reservation_id)


@named
def send_certificate(database: Database, user_id: Any, amount: Any) -> str:
    """At most three a user."""
    if not database.has("users", user_id):
        raise ToolError("user not found")
    methods = database.edit("users", user_id)["payment_methods"]
    for certificate in NEW_CERTIFICATES:
        if certificate not in methods:
            methods[certificate] = {"source": "certificate", "amount": amount, "id": certificate}
            return f"Certificate {certificate} added to user {user_id} with amount {amount}."
    return "None"


def _check_payment(database: Database, reservation: Row, payment_id: Any, price: Any) -> bool:
    """Whether a gift card pays. Raises `ToolError` if the method cannot pay."""
    methods = database.read("users", reservation["user_id"])["payment_methods"]
    if payment_id not in methods:
        raise ToolError("payment method not found")
    method = methods[payment_id]
    if method["source"] == "certificate":
        raise ToolError("certificate cannot be used to update reservation")
    if method["source"] == "gift_card" and method["amount"] < price:
        raise ToolError("gift card balance is not enough")
    return bool(method["source"] == "gift_card")


def _take(database: Database, reservation: Row, payment_id: str, price: Any) -> None:
    database.edit("users", reservation["user_id"])["payment_methods"][payment_id]["amount"] -= price


@named
def update_reservation_baggages(
    database: Database, reservation_id: Any, total_baggages: Any, nonfree_baggages: Any, payment_id: Any
) -> str:
    """More bags that are not free are paid."""
    reservation = _reservation(database, reservation_id, change=False)
    price = 50 * max(0, nonfree_baggages - reservation["nonfree_baggages"])
    by_card = _check_payment(database, reservation, payment_id, price)
    reservation = _reservation(database, reservation_id, change=True)
    reservation["total_baggages"], reservation["nonfree_baggages"] = total_baggages, nonfree_baggages
    if by_card:
        _take(database, reservation, payment_id, price)
    if price != 0:
        reservation["payment_history"].append({"payment_id": payment_id, "amount": price})
    return json.dumps(reservation)


@named
def update_reservation_flights(
    database: Database, reservation_id: Any, cabin: Any, flights: Any, payment_id: Any
) -> str:
    """Flights that stay keep their price. The cabin of the reservation is not changed, as in the reference."""
    reservation = _reservation(database, reservation_id, change=False)
    passengers = reservation["passengers"]
    price = 0
    for flight in flights:
        kept = _kept(reservation["flights"], flight) if cabin == reservation["cabin"] else []
        if kept:
            flight.update({key: kept[0][key] for key in ("price", "origin", "destination")})
            price += flight["price"] * len(passengers)
        else:
            price += _fly(database, flight, cabin, passengers)
    price -= sum(flight["price"] for flight in reservation["flights"]) * len(passengers)
    by_card = _check_payment(database, reservation, payment_id, price)
    reservation = _reservation(database, reservation_id, change=True)
    if by_card:
        _take(database, reservation, payment_id, price)
    reservation["flights"] = flights
    if price != 0:
        reservation["payment_history"].append({"payment_id": payment_id, "amount": price})
    return json.dumps(reservation)


def _kept(flights: Sequence[Row], flight: Row) -> list[Row]:
    """The same flight on the same date."""
    return [one for one in flights if one["flight_number"] == flight["flight_number"] and one["date"] == flight["date"]]


@named
def update_reservation_passengers(database: Database, reservation_id: Any, passengers: Any) -> str:
    """Others, as many as before."""
    reservation = _reservation(database, reservation_id, change=False)
    if len(passengers) != len(reservation["passengers"]):
        raise ToolError("number of passengers does not match")
    reservation = _reservation(database, reservation_id, change=True)
    reservation["passengers"] = passengers
    return json.dumps(reservation)


FUNCTIONS = (
    book_reservation, calculate, cancel_reservation, get_reservation_details, get_user_details, list_all_airports,
    search_direct_flight, search_onestop_flight, send_certificate, think, transfer_to_human_agents,
    update_reservation_baggages, update_reservation_flights, update_reservation_passengers,
)  # fmt: skip
