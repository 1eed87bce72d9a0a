"""benchmarks.question_sets: the passage of a question is the paragraph of its sentence."""

from benchmarks.question_sets import WAYS, ask, describe, find_passage

DOCUMENTS = {"a": {"id": "a", "text": "Elbach grows\n\n"
                                      "The plant built 1,200 cars. It employs 300 people.\n\nEnd."}}
QUESTION = {"question": "Which figure belongs in the gap of this sentence from “Elbach grows”? "
                        "“The plant built ____.”",
            "choices": ["900 cars", "1,200 cars"], "answer": 1, "source": "a"}


def test_passage_is_the_paragraph_of_the_completed_sentence():
    assert find_passage(QUESTION, DOCUMENTS) == "The plant built 1,200 cars. It employs 300 people."


def test_no_passage_where_the_sentence_or_the_document_is_not_there():
    assert find_passage(QUESTION | {"answer": 0}, DOCUMENTS) is None
    assert find_passage(QUESTION | {"source": "b"}, DOCUMENTS) is None
    on_day = QUESTION | {"question": "On which day did “Elbach grows” come out?"}
    assert find_passage(on_day, DOCUMENTS) is None


def test_a_context_that_the_question_has_is_its_passage():
    assert find_passage(QUESTION | {"context": "given"}, DOCUMENTS) == "given"


def test_choices_alone_are_asked_without_question_and_passage():
    asked = ask(QUESTION | {"context": "given"}, "from the choices alone", "given")
    assert (asked["question"], asked["context"], asked["choices"]) == ("", None, QUESTION["choices"])
    assert ask(QUESTION | {"context": "given"}, "from memory", "given")["context"] is None


def test_differences_are_of_the_questions_that_have_a_passage():
    rows = [{"way": way, "question": number, "source": str(number), "correct": correct}
            for way, answers in zip(WAYS, ({0: 1, 1: 1}, {0: 0, 1: 1, 2: 1}, {0: 0, 1: 0, 2: 0}), strict=True)
            for number, correct in answers.items()]
    counts = {line[0]: line[1:] for line in describe(rows, "correct")}
    assert counts["from memory"][0] == "3"
    assert counts["with the passage less from memory"][0] == "2"
    assert counts["with the passage less from memory"][2].startswith("0.500")
