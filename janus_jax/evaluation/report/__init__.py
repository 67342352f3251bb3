"""`janus report`: runs, evaluations and answers on one page, from their files alone."""
