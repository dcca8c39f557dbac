/* Compiles HLSL files by Microsoft's own compilers: compile.exe DLL < list of paths
 *
 * DLL is d3dcompiler_47.dll (FXC, which wgpu uses on DX12 by default) or dxcompiler.dll (DXC). Prints
 * what the compiler says of each file that it refuses, then a total; exits with 1 when one was refused
 * or none was there. The interfaces are declared here as far as they are used, in their binary order.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

/* ID3DBlob and IDxcBlob. */
typedef struct Blob {
    struct {
        HRESULT(__stdcall *query)(struct Blob *, const GUID *, void **);
        ULONG(__stdcall *add_ref)(struct Blob *);
        ULONG(__stdcall *release)(struct Blob *);
        void *(__stdcall *pointer)(struct Blob *);
        SIZE_T(__stdcall *size)(struct Blob *);
    } *v;
} Blob;

typedef HRESULT(__stdcall *Fxc)(const void *, SIZE_T, const char *, const void *, void *, const char *,
                                const char *, UINT, UINT, Blob **, Blob **);

/* IDxcOperationResult, which IDxcResult extends. */
typedef struct Result {
    struct {
        HRESULT(__stdcall *query)(struct Result *, const GUID *, void **);
        ULONG(__stdcall *add_ref)(struct Result *);
        ULONG(__stdcall *release)(struct Result *);
        HRESULT(__stdcall *status)(struct Result *, HRESULT *);
        HRESULT(__stdcall *code)(struct Result *, Blob **);
        HRESULT(__stdcall *errors)(struct Result *, Blob **);
    } *v;
} Result;

typedef struct {
    const void *text;
    SIZE_T size;
    UINT encoding;
} Source;

/* IDxcCompiler3. */
typedef struct Dxc {
    struct {
        HRESULT(__stdcall *query)(struct Dxc *, const GUID *, void **);
        ULONG(__stdcall *add_ref)(struct Dxc *);
        ULONG(__stdcall *release)(struct Dxc *);
        HRESULT(__stdcall *compile)(struct Dxc *, const Source *, const wchar_t **, UINT, void *,
                                    const GUID *, void **);
    } *v;
} Dxc;

static const GUID DXC_CLASS = {0x73e22d93, 0xe6ce, 0x47f3, {0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0}};
static const GUID DXC_COMPILER = {0x228b4687, 0x5a6a, 0x4730, {0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54}};
static const GUID DXC_RESULT = {0x58346cda, 0xdde7, 0x4497, {0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59}};

static Fxc fxc;
static Dxc *dxc;

/* Gives the code, or NULL and what the compiler says. */
static Blob *compile(const char *text, SIZE_T size, Blob **said) {
    Blob *code = NULL;
    if (fxc) {
        const UINT strict = 1u << 11;
        HRESULT done = fxc(text, size, NULL, NULL, NULL, "main", "cs_5_1", strict, 0, &code, said);
        return done < 0 ? NULL : code;
    }
    const wchar_t *arguments[] = {L"-E", L"main", L"-T", L"cs_6_0", L"-HV", L"2018"};
    Source source = {text, size, 65001};
    Result *result = NULL;
    HRESULT status = -1;
    if (dxc->v->compile(dxc, &source, arguments, 6, NULL, &DXC_RESULT, (void **)&result) < 0) return NULL;
    result->v->status(result, &status);
    result->v->errors(result, said);
    if (status >= 0) result->v->code(result, &code);
    result->v->release(result);
    return code;
}

int main(int count, char **arguments) {
    HMODULE library = count > 1 ? LoadLibraryA(arguments[1]) : NULL;
    if (library) {
        typedef HRESULT(__stdcall * Create)(const GUID *, const GUID *, void **);
        fxc = (Fxc)(void *)GetProcAddress(library, "D3DCompile");
        Create create = (Create)(void *)GetProcAddress(library, "DxcCreateInstance");
        if (create) create(&DXC_CLASS, &DXC_COMPILER, (void **)&dxc);
    }
    if (!fxc && !dxc) {
        printf("no compiler in %s\n", count > 1 ? arguments[1] : "(no DLL given)");
        return 1;
    }
    int files = 0, refused = 0;
    char path[4096];
    while (fgets(path, sizeof path, stdin)) {
        path[strcspn(path, "\r\n")] = 0;
        files += 1;
        FILE *file = fopen(path, "rb");
        char *text = malloc(1 << 20);
        size_t size = file && text ? fread(text, 1, 1 << 20, file) : 0;
        if (file) fclose(file);
        Blob *said = NULL;
        Blob *code = size ? compile(text, size, &said) : NULL;
        if (!code || code->v->size(code) == 0) {
            refused += 1;
            printf("REFUSED %s\n", path);
            if (said) printf("%.*s\n", (int)said->v->size(said), (char *)said->v->pointer(said));
        }
        if (code) code->v->release(code);
        if (said) said->v->release(said);
        free(text);
    }
    printf("%s: %d files, %d refused\n", fxc ? "FXC" : "DXC", files, refused);
    return refused || !files;
}
