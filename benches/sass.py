#!/usr/bin/env python3
"""What NVIDIA's compiler makes of the kernels of a training step, on a machine without a GPU.

    python3 benches/sass.py [--arch sm_90] [--keep FOLDER]

Each kernel, with the constants of its launch, goes from WGSL to HLSL (naga, `cargo bench --bench hlsl`), to CUDA (slangc), to machine code
(NVRTC), all unpacked from Python packages into target/sass. The driver's own compiler for Vulkan is another, so this shows what a kernel
asks for, not what it will take. A line for each kernel: workgroups of a step at batch 64; registers and spilled bytes of an invocation, shared
bytes of a workgroup; then of the loop with the most multiply-adds its instructions, how many are multiply-adds (FFMA), loads from
shared memory (LDS) and global memory (LDG), and the instructions of the loop around it, its own once. A kernel of two products has two lines.
"""

import argparse, collections, ctypes, glob, os, re, subprocess, sys, zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "sass")
FORM = "{:<34}" + "{:>8}" * 9
PACKAGES = ["slangtorch==1.3.22", "nvidia-cuda-nvrtc-cu12==12.9.86", "triton==3.9.0"]  # triton for its cuobjdump


def tools():
    """Unpacks the packages once; returns slangc, libnvrtc and cuobjdump."""
    unpacked = os.path.join(WORK, "tools")
    slangc, nvrtc, cuobjdump = (os.path.join(unpacked, path) for path in (
        "slangtorch/bin/slangc", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "triton/backends/nvidia/bin/cuobjdump"))
    if not all(map(os.path.exists, (slangc, nvrtc, cuobjdump))):
        wheels = os.path.join(WORK, "wheels")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, *PACKAGES]
        if subprocess.run(pip).returncode != 0:
            sys.exit("pip could not download what is needed: " + ", ".join(PACKAGES))
        for wheel in glob.glob(os.path.join(wheels, "*.whl")):
            zipfile.ZipFile(wheel).extractall(unpacked)
        for program in [slangc] + glob.glob(os.path.join(os.path.dirname(cuobjdump), "*")):
            os.chmod(program, 0o755)
    return slangc, nvrtc, cuobjdump


def cuda(slangc, source, target):
    """HLSL to CUDA, with loads and stores of four numbers as such."""
    text = open(source).read()
    for old, new in ((r"asfloat\((\w+)\.Load(\d)\(", r"(\1.LoadAligned<float\2>("), (r"asfloat\((\w+)\.Load\(", r"(\1.LoadAligned<float>("),
                     (r"(\w+)\.Load\(", r"\1.LoadAligned<uint>("), (r"\.Store(\d)\(", r".StoreAligned<uint\1>("), (r"\.Store\(", ".StoreAligned<uint>(")):
        text = re.sub(old, new, text)
    adapted = target + ".hlsl"
    open(adapted, "w").write(text)
    env = dict(os.environ, LD_LIBRARY_PATH=os.path.dirname(slangc))
    command = [slangc, adapted, "-lang", "slang", "-entry", "main", "-stage", "compute", "-target", "cuda", "-o", target]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{adapted}: slangc ended with {done.returncode}: {done.stdout[-2000:]}")
    text = open(target).read()
    copied = "memcpy(&data, ((const char*)this->data) + index, sizeof(T));"
    open(target, "w").write(text.replace(copied, "data = *(const T*)(((const char*)this->data) + index);"))


def machine_code(nvrtc, source, target, arch):
    library, program, size = ctypes.CDLL(nvrtc), ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), open(source, "rb").read(), b"kernel.cu", 0, None, None)
    options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17", b"-default-device", b"-w"]
    code = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if code != 0:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        sys.exit(f"{source}: NVRTC ended with {code}: {log.value.decode()[:2000]}")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, cubin)
    open(target, "wb").write(cubin.raw)


def loops(sass):
    """Of every loop, the first and last instruction's index; and all instructions."""
    code = [(int(at, 16), text.strip()) for at, text in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)]
    index = {at: i for i, (at, _) in enumerate(code)}
    found = []
    for i, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        first = index.get(int(jump.group(1), 16)) if jump else None
        if first is not None and first < i:
            found.append((first, i))
    return found, [re.sub(r"^@!?U?P\d+\s+", "", text).split()[0].split(".")[0] for _, text in code]


def report(name, workgroups, usage, sass):
    registers, shared, spilled = (int(re.search(key + r":(\d+)", usage).group(1)) for key in ("REG", "SHARED", "LOCAL"))
    found, names = loops(sass)
    count = lambda loop: collections.Counter(names[loop[0]:loop[1] + 1])
    inside = lambda loop, other: loop != other and other[0] <= loop[0] and loop[1] <= other[1]
    most = max((count(loop)["FFMA"] for loop in found), default=0)
    # What is multiplied in a loop within one is that one's too.
    main = [loop for loop in found if 0 < most <= 2 * count(loop)["FFMA"]]
    rows = []
    for loop in (loop for loop in main if not any(inside(other, loop) for other in main)):
        around = min((other for other in found if inside(loop, other)), key=lambda other: other[1] - other[0], default=None)
        counts = count(loop)
        rows.append([loop[1] - loop[0] + 1, counts["FFMA"], counts["LDS"], counts["LDG"], around[1] - around[0] + 1 if around else "-"])
    for row in rows or [["-"] * 5]:
        print(FORM.format(name, workgroups, registers, spilled, shared, *row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help="the GPU's architecture (default: sm_90, an H100's)")
    parser.add_argument("--keep", default=os.path.join(WORK, "code"), help="where texts and machine code go (default: target/sass/code)")
    arguments = parser.parse_args()
    slangc, nvrtc, cuobjdump = tools()
    os.makedirs(arguments.keep, exist_ok=True)
    listed = subprocess.run(["cargo", "bench", "--quiet", "--bench", "hlsl", "--", os.path.abspath(arguments.keep)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE)
    if listed.returncode != 0:
        sys.exit("cargo bench --bench hlsl failed")
    print(FORM.format("kernel", "groups", "regs", "spilled", "shared", "loop", "FFMA", "LDS", "LDG", "around"))
    for line in listed.stdout.splitlines():
        file, _, workgroups = line.split("\t")
        stem = os.path.join(arguments.keep, file.removesuffix(".hlsl"))
        cuda(slangc, stem + ".hlsl", stem + ".cu")
        machine_code(nvrtc, stem + ".cu", stem + ".cubin", arguments.arch)
        read = lambda flag: subprocess.run([cuobjdump, flag, stem + ".cubin"], check=True, text=True, stdout=subprocess.PIPE,
                                           stderr=subprocess.DEVNULL).stdout
        sass = read("-sass")
        open(stem + ".sass", "w").write(sass)
        report(file.removesuffix(".hlsl"), workgroups, read("-res-usage"), sass)


main()
