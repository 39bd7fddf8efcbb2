"""What MkDocs calls: adds the generated pages, and the pictures that they show, to the files of the site."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from agm.strategies import strategies
from docgen.included import FILES, ROOT
from docgen.pages import generated


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page a method in the menu, after the table of all."""
    for section in config.nav or []:
        if "Methods" in section:
            section["Methods"] += [{name: f"methods/{name}.md"} for name in strategies]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    for source, place in FILES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files
