// An NVRTC that makes libraries of the host, for the libcuda beside it. The host's compiler is $CXX, or g++.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6 };

struct Program {
    std::string name, source, log, image;
    std::vector<std::pair<std::string, std::string>> headers;
};

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

// The folder of this library, where the shim's header lies too.
static std::string own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&own_folder), &info);
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

API int nvrtcVersion(int* major, int* minor) {
    *major = 12, *minor = 8;
    return SUCCESS;
}

API const char* nvrtcGetErrorString(int error) {
    return error == SUCCESS ? "NVRTC_SUCCESS" : error == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_INVALID_INPUT";
}

API int nvrtcGetNumSupportedArchs(int* count) {
    *count = 2;
    return SUCCESS;
}

API int nvrtcGetSupportedArchs(int* all) {
    all[0] = 80, all[1] = 90;
    return SUCCESS;
}

API int nvrtcCreateProgram(Program** program, const char* source, const char* name, int count, const char* const* texts,
                           const char* const* names) {
    *program = new Program{name, source, "", "", {}};
    for (int i = 0; i < count; i++) (*program)->headers.emplace_back(names[i], texts[i]);
    return SUCCESS;
}

API int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    // What makes machine code of CUDA C++ is asked for a device that there is, and in the language that sources are in.
    bool has_architecture = false, has_language = false;
    for (int i = 0; i < count; i++) {
        has_architecture |= !strcmp(options[i], "--gpu-architecture=sm_80");
        has_language |= !strcmp(options[i], "--std=c++17");
    }
    if (!has_architecture || !has_language) return INVALID_INPUT;
    char folder[] = "/tmp/nvrtc-XXXXXX";
    if (!mkdtemp(folder)) return INVALID_INPUT;
    std::string at = folder;
    auto write = [&](const std::string& name, const std::string& text) { std::ofstream(at + "/" + name, std::ios::binary) << text; };
    for (auto& [name, text] : program->headers) write(name, text);
    write("host.h", read(own_folder() + "/host.h"));
    write("source.cpp", program->source);
    const char* compiler = getenv("CXX");
    std::string command = std::string(compiler ? compiler : "g++") +
        " -std=c++17 -O1 -fPIC -shared -fvisibility=hidden -ffp-contract=off -DKASMINA_HOST -Wno-unknown-pragmas -I " + at + " " +
        at + "/source.cpp -o " + at + "/library.so > " + at + "/log 2>&1";
    int result = system(command.c_str());
    program->log = read(at + "/log");
    if (!result) {
        std::string library = read(at + "/library.so");
        uint64_t bytes = library.size();
        program->image = "HOSTCODE" + std::string(reinterpret_cast<char*>(&bytes), 8) + library;
    }
    (void)!system(("rm -r " + at).c_str());
    return result ? COMPILATION : SUCCESS;
}

static int size_of(const std::string& text, size_t* size, bool has_end) {
    *size = text.size() + has_end;
    return SUCCESS;
}

API int nvrtcGetProgramLogSize(Program* program, size_t* size) { return size_of(program->log, size, true); }
API int nvrtcGetCUBINSize(Program* program, size_t* size) { return size_of(program->image, size, false); }

API int nvrtcGetProgramLog(Program* program, char* to) {
    memcpy(to, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

API int nvrtcGetCUBIN(Program* program, char* to) {
    memcpy(to, program->image.data(), program->image.size());
    return SUCCESS;
}
