"""The reviewer's page: twelve questions about a study, answered from its files."""
