"""Wavefront OBJ with MTL -> Scene: polygons kept, one mesh for each `o`, groups as face groups, materials per face.

Sources: Wavefront "Object Files (.obj)" and "MTL material format" (1995); the PBR statements Pr, Pm, map_Pr, map_Pm,
norm of the de-facto extension. OBJ does not say which way is up or how long a unit is: Y and metres are assumed and
no number is changed.
"""

import math
import re
from pathlib import Path, PurePosixPath

import numpy as np

from meshes.paths import image_mime, path_beside, read_file
from meshes.scene import FaceVarying, Image, Material, Mesh, Node, Primvar, Scene, Texture
from shared_utils.errors import InvalidInputError, MissingInputError

_IGNORED = {
    "vp",
    "cstype",
    "deg",
    "bmat",
    "step",
    "curv",
    "curv2",
    "surf",
    "parm",
    "trim",
    "hole",
    "scrv",
    "sp",
    "end",
    "con",
}
_IGNORED |= {
    "mg",
    "bevel",
    "c_interp",
    "d_interp",
    "lod",
    "shadow_obj",
    "trace_obj",
    "ctech",
    "stech",
    "usemap",
    "maplib",
}


# All corners of one form, one a line: by how many numbers they have and how many slashes.
_NUMBER = r"\d{1,10}"
_PLAIN = {
    key: re.compile(rf"(?:{form}\n)*{form}", re.ASCII)
    for key, form in {
        (1, 0): _NUMBER,
        (2, 1): f"{_NUMBER}/{_NUMBER}",
        (2, 2): f"{_NUMBER}//{_NUMBER}",
        (3, 2): f"{_NUMBER}/{_NUMBER}/{_NUMBER}",
    }.items()
}


def read_obj(path: Path) -> Scene:
    """Read a .obj file. Raises InvalidInputError naming the line, or MissingInputError for a picture that is not
    there.
    """
    reader = _ObjReader(Path(path))
    reader.parse()
    return reader.finish()


def _text(data: bytes) -> str:
    if data[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class _Object:
    """The faces behind one `o` line: the corners as text until all lines are known, then as indices [L] int64 (-1:
    none).
    """

    def __init__(self, name: str):
        self.name = name
        self.lines: list[int] = []
        self.corners: list[list[str]] = []
        self.known: list[tuple[int, int, int]] = []  # How many v, vt and vn lines stood before each face.
        self.materials: list[int] = []
        self.smoothing: list[int] = []
        self.groups: dict[str, list[int]] = {}
        self.points = self.uvs = self.normals = np.zeros(0, np.int64)

    def plain_indices(self) -> np.ndarray | None:
        """Indices [L, 3] (0: none) if all corners are of one form, such as 1/2/3, with nothing but positive numbers."""
        tokens = [corner for corners in self.corners for corner in corners]
        form = re.sub(r"\d+", "1", tokens[0]) if tokens else ""
        columns = {"1": [0], "1/1": [0, 1], "1//1": [0, 2], "1/1/1": [0, 1, 2]}.get(form)
        if columns is None:
            return None
        slashes = tokens[0].count("/")
        text = "\n".join(tokens)
        if not _PLAIN[len(columns), slashes].fullmatch(text):
            return None
        table = np.zeros((len(tokens), 3), np.int64)
        numbers = list(map(int, text.replace("/", " ").split()))
        if max(numbers) > 2**31:
            return None
        table[:, columns] = np.array(numbers, np.int64).reshape(len(tokens), len(columns))
        return table if (table[:, columns] > 0).all() else None


class _ObjReader:
    def __init__(self, path: Path):
        self.path, self.scene = path, Scene()
        data = read_file(path)
        if not data.strip():
            raise InvalidInputError(f"{path}: empty file")
        text = _text(data)
        if "\x00" in text[:4096]:
            raise InvalidInputError(f"{path}: no OBJ text file")
        self.text = text.replace("\\\r\n", " ").replace("\\\n", " ")
        self.points: list[list[str]] = []
        self.uvs: list[list[str]] = []
        self.normals: list[list[str]] = []
        self.objects = [_Object(path.stem)]
        self.materials: dict[str, int] = {}
        self.current_groups: list[str] = []
        self.material = -1
        self.smoothing = 0
        self.images: dict[str, int] = {}
        self.lost: dict[str, int] = {}

    def fail(self, number: int, text: str):
        """Raise InvalidInputError with file and line."""
        raise InvalidInputError(f"{self.path}, line {number}: {text}")

    def parse(self) -> None:
        """Collect vertices and faces."""
        known = 0
        for number, line in enumerate(self.text.split("\n"), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key = words[0]
            if key == "v":
                self.points.append(words[1:])
            elif key == "vt":
                self.uvs.append(words[1:])
            elif key == "vn":
                self.normals.append(words[1:])
            elif key in ("f", "fo"):
                self._face(words[1:], number)
            else:
                self._statement(key, line.strip()[len(key) :].strip(), number)
            known += key in ("v", "vt", "vn", "f", "fo", "o", "g", "s", "usemtl", "mtllib", "l", "p")
        if not known:
            raise InvalidInputError(f"{self.path}: holds no OBJ statement")

    def _statement(self, key: str, rest: str, number: int) -> None:
        if key == "o":
            self.objects.append(_Object(rest or f"object{len(self.objects)}"))
        elif key == "g":
            self.current_groups = [] if rest in ("", "default", "off") else rest.split()
        elif key == "s":
            self.smoothing = int(rest) if rest.isdigit() else 0
        elif key == "usemtl":
            self.material = self._material(rest) if rest else -1
        elif key == "mtllib":
            self._read_mtl(rest)
        elif key in ("l", "p"):
            self._lose({"l": "lines", "p": "points"}[key])
        elif key in _IGNORED:
            self._lose(f"{key!r} statements")
        else:
            self._lose("unknown statements")

    def _material(self, name: str) -> int:
        if name not in self.materials:
            self.materials[name] = len(self.scene.materials)
            self.scene.materials.append(Material(name, base_color=(0.8, 0.8, 0.8, 1.0)))
        return self.materials[name]

    def _face(self, corners: list[str], number: int) -> None:
        if len(corners) < 3:
            self._lose("faces with fewer than 3 corners")
            return
        target = self.objects[-1]
        for group in self.current_groups:
            target.groups.setdefault(group, []).append(len(target.lines))
        target.lines.append(number)
        target.corners.append(corners)
        target.known.append((len(self.points), len(self.uvs), len(self.normals)))
        target.materials.append(self.material)
        target.smoothing.append(self.smoothing)

    def _resolve(self, target: _Object) -> None:
        """Corner texts to indices: all at once where they are plain, else corner by corner."""
        table = target.plain_indices()
        if table is None:
            rows = [
                self._corner(corner, number, known)
                for corners, number, known in zip(target.corners, target.lines, target.known, strict=True)
                for corner in corners
            ]
            table = np.array(rows, np.int64).reshape(-1, 3)
        target.points, target.uvs, target.normals = (table - 1).T

    def _corner(self, corner: str, number: int, known: tuple[int, int, int]) -> list[int]:
        """One corner as three indices from 1 on (0: none); negative ones count back from the last line before the
        face.
        """
        parts = corner.split("/")
        try:
            numbers = [int(part) if part else 0 for part in parts]
        except ValueError:
            self.fail(number, f"{corner[:40]!r} is no face corner")
        if len(parts) > 3 or max(map(abs, numbers)) > 2**31:
            self.fail(number, f"{corner[:40]!r} is no face corner")
        if numbers[0] == 0 or any(part and not value for part, value in zip(parts, numbers, strict=True)):
            self.fail(number, f"face corner {corner[:40]!r}: indices start at 1")
        for place, value in enumerate(numbers):
            if value < 0:
                if known[place] + value < 0:
                    what = ("vertices", "texture coordinates", "normals")[place]
                    self.fail(number, f"index {value}, there are {known[place]} {what} so far")
                numbers[place] = known[place] + value + 1
        return [*numbers, 0, 0][:3]

    def _lose(self, what: str) -> None:
        self.lost[what] = self.lost.get(what, 0) + 1

    def finish(self) -> Scene:
        """Build the meshes."""
        points, colors = self._vertices()
        uvs = self._table(self.uvs, 2, "vt", fill=True)
        normals = self._table(self.normals, 3, "vn")
        for what, count in self.lost.items():
            self.scene.warn(f"{count} {what} are not kept")
        shown = [thing for thing in self.objects if thing.lines]
        if not shown:
            shown = self.objects[-1:]
        for thing in shown:
            self._resolve(thing)
        for thing in shown:
            mesh = self._mesh(thing, points, colors, uvs, normals, whole=len(shown) == 1)
            if problem := mesh.problem():
                raise InvalidInputError(f"{self.path}: object {mesh.name!r}: {problem}")
            self.scene.nodes.append(Node(mesh.name, mesh=len(self.scene.meshes)))
            self.scene.meshes.append(mesh)
        if len(shown) > 1:
            unused = len(points) - len(np.unique(np.concatenate([thing.points for thing in shown])))
            if unused:
                self.scene.warn(f"{unused} vertices which no face uses are not kept")
        return self.scene

    def _table(self, rows: list[list[str]], width: int, what: str, fill: bool = False) -> np.ndarray:
        try:
            if fill:
                rows = [row if len(row) >= width else [*row, *["0"] * (width - len(row))] for row in rows]
            if any(len(row) < width for row in rows):
                raise ValueError("too few")
            # float() on the words is several times faster than numpy on an array of text.
            return np.array([float(word) for row in rows for word in row[:width]], np.float64).reshape(len(rows), width)
        except ValueError as error:
            raise InvalidInputError(f"{self.path}: a {what!r} line does not hold {width} numbers") from error

    def _vertices(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions [V, 3], and colours [V, 3] if every vertex has one behind its position."""
        points = self._table(self.points, 3, "v")
        widths = {len(row) for row in self.points}
        if 4 in widths and any(len(row) == 4 and row[3] not in ("1", "1.0", "1.000000") for row in self.points):
            self.scene.warn("vertex weights (a fourth coordinate) are not kept")
        if widths and min(widths) >= 6:
            return points, self._table([row[3:] for row in self.points], 3, "v")
        return points, None

    def _mesh(self, thing: _Object, points, colors, uvs, normals, whole: bool) -> Mesh:
        vertices = thing.points
        if len(vertices) and int(vertices.max()) >= len(points):
            raise InvalidInputError(
                f"{self.path}: a face names vertex {int(vertices.max()) + 1}, there are {len(points)}"
            )
        used = np.arange(len(points)) if whole else np.unique(vertices)
        local = np.searchsorted(used, vertices).astype(np.int32)
        mesh = Mesh(
            thing.name,
            points[used],
            np.array(list(map(len, thing.corners)), np.int32),
            local,
            np.array(thing.materials, np.int32),
        )
        if (varying := self._varying(thing.uvs, uvs, np.zeros(2), "texture coordinate")) is not None:
            mesh.uv_sets["st"] = varying
        mesh.normals = self._varying(thing.normals, normals, np.array([0.0, 0.0, 1.0]), "normal")
        if colors is not None:
            mesh.colors["displayColor"] = FaceVarying(colors[used], local)
        mesh.face_groups = {name: np.unique(np.array(faces, np.int32)) for name, faces in thing.groups.items()}
        smoothing = np.array(thing.smoothing, np.int32)
        if smoothing.any():
            mesh.primvars["smoothingGroup"] = Primvar(smoothing, None, "uniform", "int")
            if mesh.normals is None:
                mesh.sharp_edges = _edges_between(mesh, smoothing)
        return mesh

    def _varying(self, index: np.ndarray, values: np.ndarray, missing: np.ndarray, what: str) -> FaceVarying | None:
        """Values by corner; corners without one take `missing`. Only the rows in use are kept. None if there are
        none.
        """
        if not len(index) or int(index.max()) < 0:
            return None
        if int(index.max()) >= len(values):
            raise InvalidInputError(f"{self.path}: a face names {what} {int(index.max()) + 1}, there are {len(values)}")
        rows, inverse = np.unique(index, return_inverse=True)
        kept = np.where((rows >= 0)[:, None], values[rows], missing)
        return FaceVarying(kept, inverse.reshape(-1).astype(np.int32))

    def _read_mtl(self, rest: str) -> None:
        names = [rest] if rest.lower().endswith(".mtl") else rest.split()
        for name in names:
            path = self._found(name)
            if path is None:
                self.scene.warn(
                    f"the material library {name[:80]!r} does not exist; only the names of its materials are kept"
                )
                continue
            self._parse_mtl(path)

    def _found(self, name: str) -> Path | None:
        """A file beside the OBJ. Absolute paths of another machine are looked for by their last part, in this
        folder.
        """
        plain = name.replace("\\", "/")
        absolute = plain.startswith("/") or plain[1:3] == ":/"
        path = path_beside(self.path, PurePosixPath(plain).name if absolute else plain)
        return path if path.is_file() else None

    def _parse_mtl(self, path: Path) -> None:
        material, lost = None, set()
        for number, line in enumerate(_text(read_file(path, named_by=self.path)).split("\n"), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key, rest = words[0].lower(), line.strip()[len(words[0]) :].strip()
            if key == "newmtl":
                material = self.scene.materials[self._material(rest)]
            elif material is not None:
                try:
                    if not self._mtl_statement(material, key, words[1:], rest):
                        lost.add(words[0])
                except (ValueError, IndexError) as error:
                    raise InvalidInputError(f"{path}, line {number}: {line.strip()[:60]!r} makes no sense") from error
        for own in self.scene.materials:
            if own.base_color_texture is not None and not any(own.base_color[:3]):
                # Many exporters write a black Kd beside map_Kd and mean the picture alone.
                own.base_color = (1.0, 1.0, 1.0, own.base_color[3])
        if lost:
            self.scene.warn(f"{path.name}: the statements {' '.join(sorted(lost))} are not kept")

    def _mtl_statement(self, material: Material, key: str, words: list[str], rest: str) -> bool:
        """Apply one MTL line; False if there is no place for it."""
        if key in ("kd", "ke"):
            color = [float(word) for word in words[:3]]
            color = tuple(color * 3 if len(color) == 1 else color)
            if len(color) != 3 or not all(map(math.isfinite, color)):
                raise ValueError(rest)
            if key == "kd":
                material.base_color = (*color, material.base_color[3])
            else:
                material.emissive = color
        elif key in ("d", "tr"):
            value = float(words[-1])
            self._set_opacity(material, value if key == "d" else 1 - value)
        elif key == "ns":
            # Blinn's exponent as roughness: alpha^2 = 2 / (Ns + 2), roughness = sqrt(alpha) (Walter et al. 2007; Burley 2012).
            material.roughness = (2 / (max(float(words[0]), 0.0) + 2)) ** 0.25
        elif key in ("pr", "pm", "ni"):
            setattr(material, {"pr": "roughness", "pm": "metallic", "ni": "ior"}[key], float(words[0]))
        elif key in _MAPS:
            field, channel, space = _MAPS[key]
            texture, strength = self._texture(words, rest, channel, space)
            setattr(material, field, texture)
            if field == "normal_texture":
                material.normal_scale = strength
            elif field == "opacity_texture":
                material.alpha_mode = "BLEND"
            elif field == "metallic_texture" and not material.metallic:
                material.metallic = 1.0
            elif field == "emissive_texture" and not any(material.emissive):
                material.emissive = (1.0, 1.0, 1.0)
        else:
            return key in ("ka", "illum", "ks") and self._usual(key, words)
        return True

    def _usual(self, key: str, words: list[str]) -> bool:
        """Whether a statement says no more than every exporter writes: ambient light, illumination model, grey
        highlights.
        """
        return key != "ks" or len({float(word) for word in words[:3]}) <= 1

    def _set_opacity(self, material: Material, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(value)
        material.base_color = (*material.base_color[:3], min(max(value, 0.0), 1.0))
        if material.opacity_texture is None:
            material.alpha_mode = "BLEND" if value < 1 else "OPAQUE"

    def _texture(self, words: list[str], rest: str, channel: str, space: str) -> tuple[Texture, float]:
        counts = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-mm": 2, "-texres": 1, "-clamp": 1, "-bm": 1, "-imfchan": 1}
        counts |= {"-type": 1, "-cc": 1}
        options: dict[str, list[str]] = {}
        while words and words[0].startswith("-") and len(words) > 1:
            option = words.pop(0).lower()
            taken = []
            while words and len(taken) < counts.get(option, 3) and len(words) > 1:
                if option not in counts and not _is_number(words[0]):
                    break
                taken.append(words.pop(0))
            options[option] = taken
        # What is left is the file name, which may hold spaces.
        name = rest[rest.index(words[0]) :] if not options else " ".join(words)
        texture = Texture(self._image(name), channel=channel, color_space=space)
        if "-s" in options:
            texture.uv_scale = tuple([*map(float, options["-s"]), 1.0, 1.0][:2])
        if "-o" in options:
            texture.uv_offset = tuple([*map(float, options["-o"]), 0.0, 0.0][:2])
        if options.get("-clamp") == ["on"]:
            texture.wrap_s = texture.wrap_t = "clamp"
        return texture, float(options["-bm"][0]) if options.get("-bm") else 1.0

    def _image(self, name: str) -> int:
        if name not in self.images:
            path = self._found(name)
            if path is None:
                raise MissingInputError(
                    f"the picture {name[:80]!r}, named by the materials of {self.path}, does not exist"
                )
            data = read_file(path, named_by=self.path)
            self.images[name] = len(self.scene.images)
            self.scene.images.append(Image(path.name, image_mime(data, path.name), data))
        return self.images[name]


_MAPS = {
    "map_kd": ("base_color_texture", "rgba", "sRGB"),
    "map_ke": ("emissive_texture", "rgb", "sRGB"),
    "map_d": ("opacity_texture", "r", "raw"),
    "map_pr": ("roughness_texture", "r", "raw"),
    "map_pm": ("metallic_texture", "r", "raw"),
    "norm": ("normal_texture", "rgb", "raw"),
    "map_kn": ("normal_texture", "rgb", "raw"),
    "map_bump": ("normal_texture", "rgb", "raw"),
    "bump": ("normal_texture", "rgb", "raw"),
}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _edges_between(mesh: Mesh, groups: np.ndarray) -> np.ndarray | None:
    """Edges [E, 2] whose faces belong to different smoothing groups: a hard break in shading."""
    from meshes.triangulate import next_corners

    a = mesh.face_vertices.astype(np.int64)
    b = a[next_corners(mesh)]
    keys = np.minimum(a, b) * len(mesh.points) + np.maximum(a, b)
    own = groups[mesh.corner_faces()]
    order = np.lexsort((own, keys))
    keys, own = keys[order], own[order]
    differs = (keys[1:] == keys[:-1]) & (own[1:] != own[:-1])
    edges = np.unique(keys[1:][differs])
    if not len(edges):
        return None
    return np.stack([edges // len(mesh.points), edges % len(mesh.points)], 1).astype(np.int32)
