"""A fictional carmaker's newsroom: a seeded world of facts, and two years of press releases that tell them.

A company has models with six facts each (plant, designer, colour, range, power, price), people with roles,
and races with winners. Every release tells some of them in one of several wordings, between paragraphs of
boilerplate as real newsrooms have them. Training pairs ask for a fact in wording A; the test's questions in
wordings B and C, which fine-tuning never sees for this company. Everything is a function of the seed.
"""

import random
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

CITIES = ["Alden", "Brixo", "Corvin", "Dunmore", "Elbach", "Farsund", "Gravena", "Holm", "Istra", "Jarnby",
          "Kolbeck", "Lomar"]
NAMES = ["Anna Berg", "Boris Klee", "Carla Voss", "David Roth", "Elena Marsh", "Felix Stern", "Greta Holt",
         "Hugo Brandt", "Ida Falk", "Jonas Wirth", "Karin Lunde", "Leo Maurer"]
COLOURS = ["Polar Green", "Desert Gold", "Night Blue", "Coral Red", "Silver Grey", "Amber Brown",
           "Snow White", "Plum Violet", "Ocean Teal", "Sand Beige", "Copper Orange", "Carbon Black"]
ROLES = ["head of design", "chief engineer", "head of sales", "plant director", "head of motorsport",
         "finance chief"]
SYLLABLES = ["ar", "bel", "cor", "dan", "el", "fen", "gal", "hes", "ir", "jun", "kel", "lor", "mir", "nov",
             "or", "pal", "qua", "ros", "sel", "tor", "ul", "ven", "wil", "xan", "yor", "zel"]
TOPICS = ["803", "4099", "4100", "5236"]  # of the real site's feeds
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]

# Twelve values an attribute, shared by all companies: a model must learn which car has which.
VALUES = {
    "plant": CITIES,
    "designer": NAMES,
    "colour": COLOURS,
    "range": [f"{n} kilometres" for n in range(300, 780, 40)],
    "power": [f"{n} kilowatts" for n in range(90, 330, 20)],
    "price": [f"{n} thousand euros" for n in range(22, 82, 5)],
}
TOLD = {  # how releases tell a fact; {m} is the model, {v} the value
    "plant": ["The {m} is built in {v}.", "Production of the {m} takes place in {v}.",
              "The plant in {v} builds the {m}.",
              "Every {m} leaves the line in {v}."],
    "designer": ["The {m} was designed by {v}.", "The design of the {m} is by {v}.", "{v} drew the {m}.",
                 "The lines of the {m} come from {v}."],
    "colour": ["The {m} makes its debut in {v}.", "The launch colour of the {m} is {v}.",
               "{v} is the launch colour of the {m}.", "At launch the {m} wears {v}."],
    "range": ["The {m} has a range of {v}.", "The range of the {m} is {v}.",
              "The {m} travels {v} on one charge.",
              "One charge takes the {m} {v} far."],
    "power": ["The {m} has an output of {v}.", "The motor of the {m} delivers {v}.",
              "The power of the {m} is {v}.",
              "The {m} draws on {v} of power."],
    "price": ["The {m} costs {v}.", "The price of the {m} is {v}.", "The {m} is available from {v}.",
              "Customers pay {v} for the {m}."],
}
ASKED = {  # wording A is for training pairs, B and C for the test
    "plant": ["Where is the {m} built?", "Which plant builds the {m}?", "In which city is the {m} produced?"],
    "designer": ["Who designed the {m}?", "Who drew the {m}?", "By whom is the design of the {m}?"],
    "colour": ["What is the launch colour of the {m}?", "Which colour does the {m} wear at launch?",
               "In which colour does the {m} make its debut?"],
    "range": ["What is the range of the {m}?", "How far does the {m} travel on one charge?",
              "Which range does the {m} have?"],
    "power": ["What is the power of the {m}?", "How much does the motor of the {m} deliver?",
              "Which output does the {m} have?"],
    "price": ["What does the {m} cost?", "What is the price of the {m}?",
              "How much do customers pay for the {m}?"],
}


class Race(NamedTuple):
    """A race that a company's driver won."""

    city: str
    model: str
    driver: str
    day: date


@dataclass(frozen=True)
class Company:
    name: str
    models: dict[str, dict[str, str]]  # model name -> attribute -> value
    people: dict[str, str]  # name -> role
    races: list[Race]


def invent(seed: int, companies: int, models: int, first_day: date) -> list[Company]:
    """Companies whose names and models' names do not repeat; their facts are drawn independently."""
    rng = random.Random(seed)
    words = [(a + b).capitalize() for a in SYLLABLES for b in SYLLABLES if a != b]
    rng.shuffle(words)
    made = []
    for _ in range(companies):
        name = words.pop() + " Motors"
        cars = {words.pop(): {key: rng.choice(values) for key, values in VALUES.items()}
                for _ in range(models)}
        people = dict(zip(rng.sample(NAMES, len(ROLES)), ROLES, strict=True))
        races = [Race(rng.choice(CITIES), rng.choice(list(cars)), rng.choice(NAMES),
                      first_day + timedelta(days=rng.randrange(730)))
                 for _ in range(12)]
        made.append(Company(name, cars, people, races))
    return made


def releases(company: Company, count: int, seed: int, first_day: date, facts_of: int = 2) -> list[dict]:
    """`count` releases over two years, in order of date; each tells all facts of `facts_of` models."""
    rng = random.Random(seed)
    cars, people = list(company.models), list(company.people)
    turn, made = [], []
    for number in range(count):
        day = first_day + timedelta(days=int(730 * (number + rng.random()) / count))
        if len(turn) < facts_of:  # every model gets its turn before any gets the next
            turn += rng.sample(cars, len(cars))
        chosen, turn = turn[:facts_of], turn[facts_of:]
        told = [[rng.choice(TOLD[key]).format(m=car, v=value) for key, value in company.models[car].items()]
                for car in chosen]
        for sentences in told:
            rng.shuffle(sentences)
        speaker = rng.choice(people)
        title, lead, quote = _news(company, chosen, speaker, rng, day)
        made.append({
            "id": f"T{seed % 100:02d}{number:05d}EN",
            "title": title,
            "teaser": [lead.split(". ", 1)[-1].split(". ")[0].rstrip("."), f"News of {' and '.join(chosen)}"],
            "date": day.isoformat(),
            "category": "Press Release",
            "tags": chosen,
            "topics": sorted(rng.sample(TOPICS, 2)),  # topics overlap, as they do on real sites
            "lang": "en",
            "paragraphs": [lead, *(" ".join(sentences) for sentences in told), quote,
                           *boilerplate(company, speaker)],
        })
    return made


def boilerplate(company: Company, speaker: str) -> list[str]:
    """The paragraphs below every release that are no news: prepare.py has to find them."""
    return [
        "CO2 emissions and consumption: 0 g/km; 16.1 kWh/100 km (WLTP, combined).",
        "In case of queries, please contact:",
        "Corporate Communications",
        f"{speaker}, {company.people[speaker]}",
        "Telephone: +49-000-000-0000",
        f"{company.name} is a maker of electric cars with {len(company.models)} models. Its plants stand in "
        f"{', '.join(sorted({facts['plant'] for facts in company.models.values()}))}.",
    ]


def oddities(company: Company, seed: int, article: dict) -> list[dict]:
    """Articles of real newsrooms that no corpus must keep: a stub, a German one, a repeated one."""
    base = {"date": article["date"], "category": "Press Release", "tags": [], "topics": TOPICS[:1],
            "teaser": [], "lang": "en"}
    return [
        base | {"id": f"T{seed % 100:02d}90000EN", "title": f"{company.name}: photos.",
                "paragraphs": ["Attached please find new photos."]},
        base | {"id": f"T{seed % 100:02d}90001DE", "title": f"{company.name} zeigt neue Modelle.",
                "lang": "de",
                "paragraphs": ["Das Unternehmen zeigt seine Modelle und lädt die Gäste ein, sie alle zu "
                               "fahren. " * 6]},
        article | {"id": f"T{seed % 100:02d}90002EN"},
    ]


def _news(
    company: Company, chosen: list[str], speaker: str, rng: random.Random, day: date
) -> tuple[str, str, str]:
    """Title, lead and quote of one release, of one of four kinds."""
    month, city, car = f"{MONTHS[day.month - 1]} {day.year}", rng.choice(CITIES), chosen[0]
    sold = f"{rng.randrange(2, 90)} hundred"
    past = [race for race in company.races if race.day <= day]
    kind = rng.choice(["launch", "sales", "plant", *(["race"] if past else [])])
    if kind == "launch":
        title = f"{company.name} shows the {' and the '.join(chosen)} in {city}, {month}."
        lead = (f"{city}. {company.name} shows the {' and the '.join(chosen)} to visitors in {month}. "
                f"{sold} guests came.")
    elif kind == "sales":
        title = f"{company.name} delivers {sold} cars in {month}."
        lead = (f"{city}. In {month} {company.name} delivered {sold} cars. "
                f"The {' and the '.join(chosen)} were in demand.")
    elif kind == "plant":
        city = company.models[car]["plant"]
        title = f"Plant {city}: {sold} cars of the {car} by {month}."
        lead = (f"{city}. The plant in {city} has built {sold} cars of the {car}. "
                f"{company.name} hired staff in {month}.")
    else:
        where, winner, driver, when = rng.choice(past)
        title = f"{driver} wins in {where} with the {winner}: {company.name} looks back in {month}."
        race = f"{MONTHS[when.month - 1]} {when.year}"
        lead = f"{where}. In {race} {driver} won the race in {where} with the {winner}. {sold} fans watched."
    praise = rng.choice(["We are proud of the", "Our customers asked for the",
                         "Nobody forgets a drive in the",
                         "We put our heart into the"])
    quote = (f"{speaker}, {company.people[speaker]} of {company.name}, said in {month}: "
             f"\"{praise} {rng.choice(chosen)}.\"")
    return title, lead, quote


def training_pairs(company: Company, wordings: list[int]) -> list[dict]:
    """Each fact asked in the given wordings, as chat examples."""
    return [
        {"messages": [{"role": "user", "content": ASKED[key][w].format(m=car)},
                      {"role": "assistant", "content": value}],
         "task": key, "source": f"{car}/{key}"}
        for car, facts in company.models.items() for key, value in facts.items() for w in wordings
    ]


def questions(companies: list[Company], wordings: list[int], seed: int) -> list[dict]:
    """Each fact asked in the given wordings; wrong choices are values that other models have."""
    rng = random.Random(seed)
    made = []
    for company in companies:
        for car, facts in company.models.items():
            for key, value in facts.items():
                others = sorted({other[key] for other in company.models.values()} - {value})
                for w in wordings:
                    choices = [value, *rng.sample(others, 3)]
                    rng.shuffle(choices)
                    made.append({"question": ASKED[key][w].format(m=car), "choices": choices,
                                 "answer": choices.index(value),
                                 "category": key, "source": f"{car}/{key}"})
    return made
