"""Small made-up corpora: a service manual as chat, a charging network's pages and questions, and any PDF
file.
"""

import random
from pathlib import Path

from nanoprune.io.jsonl import write_jsonl

PARTS = ("water pump", "belt tensioner", "oil filter", "brake caliper", "fuel rail", "glow plug",
         "air mass meter", "door lock")
TASKS = ("SPEC", "PROCEDURE", "EXPLANATION", "WIRING", "TROUBLESHOOTING")


def pdf(pages: list[list[tuple[int, int, str]]], title: str = "", made: str = "") -> bytes:
    """A PDF file of pages of (x, y, text) in points, drawn in this order."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
               f"<< /Title ({title}) /CreationDate ({made}) >>"]
    for page in pages:
        drawn = " ".join(f"BT /F 10 Tf {x} {y} Td ({text}) Tj ET" for x, y, text in page)
        objects.append("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font << /F 3 0 "
                       "R >> >> "
                       f"/Contents {len(objects) + 2} 0 R >>")
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    objects[1] = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    return body + (f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size "
                   f"{len(objects) + 1} "
                   f"/Root 1 0 R /Info 4 0 R >>\nstartxref\n{len(body)}\n%%EOF\n").encode()


def manual(path: Path, count: int = 12, seed: int = 0) -> None:
    """`count` conversations of each common task and a third of it of WIRING, each with another part and
    figures.
    """
    rng, rows = random.Random(seed), []
    for task in TASKS:
        for i in range(count // 3 if task == "WIRING" else count):
            part, n, torque = PARTS[i % len(PARTS)], rng.randint(2, 9), rng.randint(8, 90)
            asked, said = {
                "SPEC": (f"What is the torque of bolt {i} of the {part}?", f"{torque} Nm"),
                "PROCEDURE": (f"How is the {part} of engine {i} changed?",
                              f"1. Let the engine cool. 2. Undo {n} bolts. 3. Fit the new {part}. 4. "
                              f"Tighten to {torque} Nm."),
                "EXPLANATION": (f"Why has engine {i} a {part}?", f"The {part} keeps {n} bar in circuit {i}."),
                "WIRING": (f"Which pin of plug {i} feeds the {part}?",
                           f"Pin {n}, a red wire of 1.5 square millimetres"),
                "TROUBLESHOOTING": (f"Fault {100 + i}: the {part} is not found. What is to be done?",
                                    f"Measure {n} ohm at plug {i}; if there is less, change the {part}."),
            }[task]
            messages = [{"role": "system", "content": "You answer from the service manual."},
                        {"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            if i % 4 == 3:  # a second question about the same
                messages += [{"role": "user", "content": "And on the left?"},
                             {"role": "assistant", "content": "The same."}]
            rows.append({"messages": messages, "task": task})
    write_jsonl(path, rows)


def charging(folder: Path, questions: Path, stations: int = 26) -> None:
    """A page a station, every third one as PDF, and four questions on each by category and difficulty."""
    rng, rows = random.Random(1), []
    folder.mkdir(parents=True)
    kinds = (("tariff", "easy"), ("tariff", "hard"), ("hardware", "easy"), ("access", "hard"))
    for i in range(stations):
        power, price, bays, hour = rng.randint(50, 350), rng.randint(29, 79), rng.randint(2,
                                                                                          20), rng.randint(5,
                                                                                                           9)
        name = f"Station {i} of {rng.choice(('Munich', 'Leipzig', 'Oxford'))}"
        lines = [f"{name} has {bays} bays and charges with up to {power} kW, which is enough for most of "
                 f"the cars that come.",
                 f"A kilowatt hour is {price} cents at the station, and the price is the same on all of the "
                 f"days of the week.",
                 f"The station is open from {hour} in the morning until 11 in the evening and it is lit "
                 f"when it is dark.",
                 "Drivers pay with a card or with the app, and they can ask the staff for help when a plug "
                 "does not fit.",
                 "There is a roof over all of the bays, and there are tables, water and a shop for those "
                 "who have to wait."]
        if i % 3 == 2:
            page = [(50, 740 - 15 * k, line) for k, line in enumerate(lines)]
            (folder / f"station{i}-2025-0{i % 9 + 1}-11.pdf").write_bytes(pdf([page], name))
        else:
            body = "".join(f"<p>{line}</p>" for line in lines)
            (folder / f"station{i}-2025-0{i % 9 + 1}-10.html").write_text(f"<html><body><h1>{name}</h1>"
                                                                          f"{body}</body></html>")
        answers = (f"{price} cents", f"{10 * price} cents for 10 kilowatt hours", f"{power} kW",
                   f"From {hour} until 11")
        asked = ("What is a kilowatt hour at", "What are 10 kilowatt hours at", "With how much power charges",
                 "When is open:")
        rows += [{"prompt": f"{q} {name}?", "response": a, "category": c, "difficulty": d}
                 for q, a, (c, d) in zip(asked, answers, kinds, strict=True)]
    write_jsonl(questions, rows)
