import pytest
from recorded import Project


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    yield project
    project.end()
