import pytest
from recorded import Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)
