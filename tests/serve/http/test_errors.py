"""Errors in OpenAI's shape; of our own mistakes the client learns no more than that there was one."""

import logging

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tunesmith.data.sample import RowError
from tunesmith.errors import UserError
from tunesmith.serve.ask import Full
from tunesmith.serve.customers import Refused
from tunesmith.serve.http.errors import Problem, bad, body, problem_of, response


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (bad("no", "n"), 400, "invalid_request_error"),
        (RowError("the template refuses it"), 400, "invalid_request_error"),
        (UserError("one", "two"), 400, "invalid_request_error"),
        (Refused(401, "no key", "invalid_api_key"), 401, "authentication_error"),
        (Refused(429, "later", "rate_limit_exceeded", 7), 429, "rate_limit_error"),
        (Full(), 429, "rate_limit_error"),
        (ClientDisconnect(), 499, "invalid_request_error"),
        (HTTPException(405), 405, "invalid_request_error"),
        (Problem(503, "ending"), 503, "server_error"),
    ],
)
def test_statuses_and_kinds(error, status, kind):
    problem = problem_of(error)
    told = body(problem)["error"]
    assert problem.status == status and told["type"] == kind and set(told) == {"message", "type", "param", "code"}


def test_headers():
    assert response(problem_of(Refused(429, "later", "x", 7))).headers["retry-after"] == "7"
    assert response(problem_of(Full())).headers["retry-after"] == "1"
    assert response(Problem(401, "no")).headers["www-authenticate"] == "Bearer"
    assert "retry-after" not in response(bad("no")).headers


def test_a_mistake_of_ours_is_logged_and_not_told(caplog):
    with caplog.at_level(logging.ERROR, "tunesmith.serve"):
        problem = problem_of(KeyError("/secret/path"))
    assert problem.status == 500 and "secret" not in problem.message and "secret" in caplog.text
