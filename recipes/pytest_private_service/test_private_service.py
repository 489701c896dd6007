def test_the_front_page_is_there(client, in_session):
    answer = in_session(client.get("/"))
    assert answer.status_code == 200


def test_two_requests_share_a_connection(client, in_session):
    answers = [in_session(client.get("/")) for _ in range(2)]
    assert {answer.http_version for answer in answers} == {"HTTP/1.1"}
