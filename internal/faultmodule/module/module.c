/*
 * A PKCS#11 module that stands between a program and another module, and makes
 * faults to order. Orders come through a shared file, so that a test can change
 * them while another process has the module loaded.
 *
 * For a module NAME.so, the file NAME.so.real names the module behind it, and
 * NAME.so.orders holds the orders: 64-bit words in the machine's own order. The
 * layout is that of faultmodule.go.
 *
 * Only the functions that claviger calls are forwarded. All others answer
 * CKR_FUNCTION_NOT_SUPPORTED.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(type, name) type name
#define CK_DECLARE_FUNCTION_POINTER(type, name) type(*name)
#define CK_CALLBACK_FUNCTION(type, name) type(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

/* The functions that can be ordered to fail, in the order of faultmodule.go. */
#define FUNCTIONS(F)                                                                                                 \
    F(Initialize) F(Finalize) F(GetInfo) F(GetSlotList) F(GetSlotInfo) F(GetTokenInfo) F(GetMechanismList)             \
    F(GetMechanismInfo) F(OpenSession) F(CloseSession) F(CloseAllSessions) F(GetSessionInfo) F(Login) F(Logout)        \
    F(CreateObject) F(DestroyObject) F(GetAttributeValue) F(FindObjectsInit) F(FindObjects) F(FindObjectsFinal)        \
    F(EncryptInit) F(Encrypt) F(DecryptInit) F(Decrypt) F(GenerateKey) F(GenerateKeyPair) F(GenerateRandom)            \
    F(SignInit) F(Sign)

#define NUMBER(name) N_##name,
enum { FUNCTIONS(NUMBER) functions };

/* Words of the orders that concern all functions. */
enum {
    MAGIC, LATENCY, STALE, RENUMBERED, SESSION_CAP, DATA_LIMIT, REFUSED_MECHANISM, LOGOUTS, SESSIONS_GONE, RELEASED,
    SEED, HANGING_KEY, FIRST_LABEL, SECOND_LABEL, FIRST_HANDLE, SECOND_HANDLE, FIRST_FUNCTION = 64
};
/* Words of one function. */
enum { CALLS, RUNNING, DELAY, ACTION, VALUE, TIMES, PERMILLE, DONE, SKIP, WORDS = 16 };
enum { NOTHING, FAIL, FAIL_AFTER, HANG, ABORT, SEGFAULT, FLIP, EXCHANGE };

#define MAGIC_VALUE 0x636c61766b657973ULL
#define SIZE 65536
#define STALE_SHIFT 24

static CK_FUNCTION_LIST_PTR real;
static volatile uint64_t *orders;
static CK_FUNCTION_LIST list;
static uint64_t logouts, sessions_gone; /* orders that this process has carried out */
static int64_t sessions;                /* that are open */

/*
 * A call of SoftHSM holds in_use for reading. An order that closes all sessions, or crashes the process, takes it for
 * writing. SoftHSM frees a session that is closed while another thread is in a call with it. It writes the token's file
 * at a login, and a crash in between leaves an empty file: a token that it does not show any more. An HSM does neither.
 */
static pthread_rwlock_t in_use = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static CK_RV leave(CK_RV rv)
{
    pthread_rwlock_unlock(&in_use);
    return rv;
}

#define REAL(call) (pthread_rwlock_rdlock(&in_use), leave(real->call))

static uint64_t get(int at) { return __atomic_load_n(&orders[at], __ATOMIC_SEQ_CST); }

static volatile uint64_t *word(int function, int at) { return &orders[FIRST_FUNCTION + function * WORDS + at]; }

static uint64_t of(int function, int at) { return __atomic_load_n(word(function, at), __ATOMIC_SEQ_CST); }

static void wait_for(uint64_t microseconds)
{
    struct timespec t = {microseconds / 1000000, microseconds % 1000000 * 1000};
    while (microseconds > 0 && nanosleep(&t, &t) != 0)
        ;
}

/* chance is true in permille of 1,000 calls. The sequence of one seed is the same in each run. */
static int chance(uint64_t permille)
{
    if (permille == 0 || permille >= 1000)
        return 1;
    uint64_t x = __atomic_add_fetch(&orders[SEED], 0x9e3779b97f4a7c15ULL, __ATOMIC_SEQ_CST); /* splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return (x ^ (x >> 31)) % 1000 < permille;
}

/* takes is true if an order of the function is still to be carried out, and takes one of its times. */
static int takes(int function)
{
    if (of(function, ACTION) == NOTHING || !chance(of(function, PERMILLE)))
        return 0;
    for (;;) {
        int64_t times = (int64_t)of(function, TIMES);
        if (times == 0)
            return 0;
        uint64_t was = of(function, SKIP);
        if (was > 0) {
            if (__atomic_compare_exchange_n(word(function, SKIP), &was, was - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                return 0;
            continue;
        }
        was = (uint64_t)times;
        if (times < 0 || __atomic_compare_exchange_n(word(function, TIMES), &was, (uint64_t)(times - 1), 0,
                                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            break;
    }
    __atomic_add_fetch(word(function, DONE), 1, __ATOMIC_SEQ_CST);
    return 1;
}

/* once carries out the orders that concern a whole process. */
static void once(void)
{
    uint64_t n = get(LOGOUTS);
    CK_SLOT_ID slots[64];
    CK_ULONG count = 64;
    if (__atomic_exchange_n(&logouts, n, __ATOMIC_SEQ_CST) != n &&
        real->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK)
        for (CK_ULONG i = 0; i < count; i++) {
            CK_SESSION_HANDLE s;
            if (real->C_OpenSession(slots[i], CKF_SERIAL_SESSION, NULL, NULL, &s) == CKR_OK) {
                real->C_Logout(s);
                real->C_CloseSession(s);
            }
        }
    n = get(SESSIONS_GONE);
    count = 64;
    if (__atomic_exchange_n(&sessions_gone, n, __ATOMIC_SEQ_CST) != n &&
        real->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK) {
        pthread_rwlock_wrlock(&in_use);
        for (CK_ULONG i = 0; i < count; i++)
            real->C_CloseAllSessions(slots[i]);
        pthread_rwlock_unlock(&in_use);
        __atomic_store_n(&sessions, 0, __ATOMIC_SEQ_CST);
    }
}

/*
 * begin counts and delays a call, and carries out what is ordered before it. It
 * returns the action that is left for the end of the call, and in rv the value
 * that was ordered.
 */
static int begin(int function, CK_RV *rv)
{
    __atomic_add_fetch(word(function, CALLS), 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(word(function, RUNNING), 1, __ATOMIC_SEQ_CST);
    if (function != N_Initialize && function != N_Finalize)
        once();
    wait_for(get(LATENCY) + of(function, DELAY));
    if (!takes(function))
        return NOTHING;
    *rv = (CK_RV)of(function, VALUE);
    int action = (int)of(function, ACTION);
    switch (action) {
    case HANG: {
        uint64_t released = get(RELEASED);
        while (get(RELEASED) == released)
            wait_for(1000);
        return NOTHING;
    }
    case ABORT:
        pthread_rwlock_wrlock(&in_use);
        abort();
    case SEGFAULT:
        pthread_rwlock_wrlock(&in_use);
        signal(SIGSEGV, SIG_DFL); /* not Go's handler: the library's own thread would die just so */
        raise(SIGSEGV);
        return NOTHING;
    }
    return action;
}

static CK_RV end(int function, int action, CK_RV ordered, CK_RV got)
{
    __atomic_sub_fetch(word(function, RUNNING), 1, __ATOMIC_SEQ_CST);
    return action == FAIL_AFTER ? ordered : got;
}

/* CALL forwards a call, unless an order says otherwise. */
#define CALL(name, args)                                                                                             \
    CK_RV ordered = CKR_OK, got;                                                                                     \
    int action = begin(N_##name, &ordered);                                                                          \
    got = action == FAIL ? ordered : REAL(C_##name args);                                                            \
    got = end(N_##name, action, ordered, got)

/* exchanged returns the handle that has changed places with h, or h. */
static CK_OBJECT_HANDLE exchanged(CK_OBJECT_HANDLE h)
{
    CK_OBJECT_HANDLE first = get(FIRST_HANDLE), second = get(SECOND_HANDLE);
    return first == 0 ? h : h == first ? second : h == second ? first : h;
}

/*
 * Handles of objects. A stale handle is one of an earlier STALE: it is refused. A
 * renumbered handle names another object: two neighbours change places. EXCHANGE
 * has two objects change places that need not be neighbours.
 */
static CK_OBJECT_HANDLE shown(CK_OBJECT_HANDLE h)
{
    return exchanged((h + 2) ^ get(RENUMBERED)) | get(STALE) << STALE_SHIFT;
}

static int known(CK_OBJECT_HANDLE *h)
{
    if (*h >> STALE_SHIFT != get(STALE))
        return 0;
    *h = (exchanged(*h & ((1 << STALE_SHIFT) - 1)) ^ get(RENUMBERED)) - 2;
    return 1;
}

/* refused counts a call that this module refuses without the one behind it. */
static CK_RV refused(int function, CK_RV rv)
{
    __atomic_add_fetch(word(function, CALLS), 1, __ATOMIC_SEQ_CST);
    return rv;
}

#define KNOWN(function, handle, error)                                                                               \
    if (!known(&handle))                                                                                             \
    return refused(N_##function, error)

/* label_hash returns the FNV-1a hash of an object's label, or 0. */
static uint64_t label_hash(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o)
{
    CK_BYTE label[256];
    CK_ATTRIBUTE a = {CKA_LABEL, label, sizeof label};
    uint64_t hash = 0xcbf29ce484222325ULL;
    if (REAL(C_GetAttributeValue(s, o, &a, 1)) != CKR_OK)
        return 0;
    for (CK_ULONG i = 0; i < a.ulValueLen; i++)
        hash = (hash ^ label[i]) * 0x100000001b3ULL;
    return hash;
}

/* hang_for_key waits while the key is the one that is ordered to hang: HANGING_KEY is the hash of its label. */
static void hang_for_key(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o)
{
    if (get(HANGING_KEY) == 0)
        return;
    uint64_t hash = label_hash(s, o);
    if (hash == 0 || get(HANGING_KEY) != hash)
        return;
    __atomic_add_fetch(word(N_EncryptInit, DONE), 1, __ATOMIC_SEQ_CST);
    while (get(HANGING_KEY) == hash)
        wait_for(1000);
}

/*
 * exchange has the handles of two objects change places, or undoes that. FIRST_LABEL and SECOND_LABEL are the hashes of
 * the objects' labels. Until both objects exist the order stays.
 */
static void exchange(int function, CK_SESSION_HANDLE s)
{
    CK_SESSION_INFO info;
    CK_SESSION_HANDLE own;
    CK_OBJECT_HANDLE all[256], first = 0, second = 0;
    CK_ULONG n = 0;
    if (get(FIRST_HANDLE) != 0) {
        __atomic_store_n(&orders[FIRST_HANDLE], 0, __ATOMIC_SEQ_CST);
        return;
    }
    if (real->C_GetSessionInfo(s, &info) == CKR_OK &&
        real->C_OpenSession(info.slotID, CKF_SERIAL_SESSION, NULL, NULL, &own) == CKR_OK) {
        if (real->C_FindObjectsInit(own, NULL, 0) == CKR_OK) {
            real->C_FindObjects(own, all, 256, &n);
            real->C_FindObjectsFinal(own);
        }
        for (CK_ULONG i = 0; i < n; i++) {
            uint64_t hash = label_hash(own, all[i]);
            if (first == 0 && hash == get(FIRST_LABEL))
                first = (all[i] + 2) ^ get(RENUMBERED);
            else if (second == 0 && hash == get(SECOND_LABEL))
                second = (all[i] + 2) ^ get(RENUMBERED);
        }
        real->C_CloseSession(own);
    }
    if (first == 0 || second == 0) {
        __atomic_sub_fetch(word(function, DONE), 1, __ATOMIC_SEQ_CST);
        if ((int64_t)of(function, TIMES) >= 0)
            __atomic_add_fetch(word(function, TIMES), 1, __ATOMIC_SEQ_CST);
        return;
    }
    __atomic_store_n(&orders[SECOND_HANDLE], second, __ATOMIC_SEQ_CST);
    __atomic_store_n(&orders[FIRST_HANDLE], first, __ATOMIC_SEQ_CST);
}

/* ANSWER ends a call that concerns objects. What the call has returned has the handles from before an exchange. */
#define ANSWER(name)                                                                                                 \
    if (action == EXCHANGE)                                                                                          \
        exchange(N_##name, s);                                                                                       \
    return got

static CK_RV my_Initialize(CK_VOID_PTR a) { CALL(Initialize, (a)); return got; }

static CK_RV my_Finalize(CK_VOID_PTR a)
{
    CALL(Finalize, (a));
    __atomic_store_n(&sessions, 0, __ATOMIC_SEQ_CST);
    return got;
}

static CK_RV my_GetInfo(CK_INFO_PTR i) { CALL(GetInfo, (i)); return got; }

static CK_RV my_GetSlotList(CK_BBOOL present, CK_SLOT_ID_PTR l, CK_ULONG_PTR n)
{
    CALL(GetSlotList, (present, l, n));
    return got;
}

static CK_RV my_GetSlotInfo(CK_SLOT_ID s, CK_SLOT_INFO_PTR i) { CALL(GetSlotInfo, (s, i)); return got; }

static CK_RV my_GetTokenInfo(CK_SLOT_ID s, CK_TOKEN_INFO_PTR i) { CALL(GetTokenInfo, (s, i)); return got; }

static CK_RV my_GetMechanismList(CK_SLOT_ID s, CK_MECHANISM_TYPE_PTR l, CK_ULONG_PTR n)
{
    CALL(GetMechanismList, (s, l, n));
    return got;
}

static CK_RV my_GetMechanismInfo(CK_SLOT_ID s, CK_MECHANISM_TYPE t, CK_MECHANISM_INFO_PTR i)
{
    CALL(GetMechanismInfo, (s, t, i));
    return got;
}

static CK_RV my_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR a, CK_NOTIFY n, CK_SESSION_HANDLE_PTR s)
{
    int64_t cap = (int64_t)get(SESSION_CAP);
    if (__atomic_add_fetch(&sessions, 1, __ATOMIC_SEQ_CST) > cap && cap > 0) {
        __atomic_sub_fetch(&sessions, 1, __ATOMIC_SEQ_CST);
        return refused(N_OpenSession, CKR_SESSION_COUNT);
    }
    CALL(OpenSession, (slot, flags, a, n, s));
    if (got != CKR_OK)
        __atomic_sub_fetch(&sessions, 1, __ATOMIC_SEQ_CST);
    return got;
}

static CK_RV my_CloseSession(CK_SESSION_HANDLE s)
{
    CALL(CloseSession, (s));
    if (got == CKR_OK)
        __atomic_sub_fetch(&sessions, 1, __ATOMIC_SEQ_CST);
    return got;
}

static CK_RV my_CloseAllSessions(CK_SLOT_ID slot)
{
    CALL(CloseAllSessions, (slot));
    __atomic_store_n(&sessions, 0, __ATOMIC_SEQ_CST);
    return got;
}

static CK_RV my_GetSessionInfo(CK_SESSION_HANDLE s, CK_SESSION_INFO_PTR i)
{
    CALL(GetSessionInfo, (s, i));
    return got;
}

static CK_RV my_Login(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR pin, CK_ULONG n)
{
    CALL(Login, (s, u, pin, n));
    return got;
}

static CK_RV my_Logout(CK_SESSION_HANDLE s) { CALL(Logout, (s)); return got; }

static CK_RV my_CreateObject(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR o)
{
    CALL(CreateObject, (s, a, n, o));
    if (got == CKR_OK)
        *o = shown(*o);
    ANSWER(CreateObject);
}

static CK_RV my_DestroyObject(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o)
{
    KNOWN(DestroyObject, o, CKR_OBJECT_HANDLE_INVALID);
    CALL(DestroyObject, (s, o));
    ANSWER(DestroyObject);
}

static CK_RV my_GetAttributeValue(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
    KNOWN(GetAttributeValue, o, CKR_OBJECT_HANDLE_INVALID);
    CALL(GetAttributeValue, (s, o, a, n));
    ANSWER(GetAttributeValue);
}

static CK_RV my_FindObjectsInit(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
    CALL(FindObjectsInit, (s, a, n));
    ANSWER(FindObjectsInit);
}

static CK_RV my_FindObjects(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR o, CK_ULONG most, CK_ULONG_PTR n)
{
    CALL(FindObjects, (s, o, most, n));
    if (got == CKR_OK)
        for (CK_ULONG i = 0; i < *n; i++)
            o[i] = shown(o[i]);
    ANSWER(FindObjects);
}

static CK_RV my_FindObjectsFinal(CK_SESSION_HANDLE s) { CALL(FindObjectsFinal, (s)); ANSWER(FindObjectsFinal); }

static CK_RV my_EncryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE o)
{
    KNOWN(EncryptInit, o, CKR_KEY_HANDLE_INVALID);
    if (get(REFUSED_MECHANISM) != 0 && m->mechanism == get(REFUSED_MECHANISM))
        return refused(N_EncryptInit, CKR_MECHANISM_INVALID);
    hang_for_key(s, o);
    CALL(EncryptInit, (s, m, o));
    ANSWER(EncryptInit);
}

/* flip changes a bit of a result, at random. */
static void flip(CK_BYTE_PTR out, CK_ULONG n)
{
    uint64_t x = __atomic_add_fetch(&orders[SEED], 0x9e3779b97f4a7c15ULL, __ATOMIC_SEQ_CST);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    out[(x >> 8) % n] ^= 1 << (x >> 32) % 8;
}

static CK_RV my_Encrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m)
{
    uint64_t limit = get(DATA_LIMIT);
    if (limit != 0 && n > limit) {
        /* A call that fails ends the operation; an empty one does so in the module behind. */
        CK_BYTE none[16];
        CK_ULONG size = sizeof none;
        REAL(C_Encrypt(s, none, 1, none, &size));
        return refused(N_Encrypt, CKR_DATA_LEN_RANGE);
    }
    CALL(Encrypt, (s, in, n, out, m));
    if (action == FLIP && got == CKR_OK && out != NULL && *m > 0)
        flip(out, *m);
    ANSWER(Encrypt);
}

static CK_RV my_DecryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE o)
{
    KNOWN(DecryptInit, o, CKR_KEY_HANDLE_INVALID);
    CALL(DecryptInit, (s, m, o));
    return got;
}

static CK_RV my_Decrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m)
{
    CALL(Decrypt, (s, in, n, out, m));
    return got;
}

static CK_RV my_GenerateKey(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG n,
                            CK_OBJECT_HANDLE_PTR o)
{
    CALL(GenerateKey, (s, m, a, n, o));
    if (got == CKR_OK)
        *o = shown(*o);
    ANSWER(GenerateKey);
}

static CK_RV my_GenerateKeyPair(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG n,
                                CK_ATTRIBUTE_PTR b, CK_ULONG k, CK_OBJECT_HANDLE_PTR o, CK_OBJECT_HANDLE_PTR p)
{
    CALL(GenerateKeyPair, (s, m, a, n, b, k, o, p));
    if (got == CKR_OK) {
        *o = shown(*o);
        *p = shown(*p);
    }
    ANSWER(GenerateKeyPair);
}

static CK_RV my_GenerateRandom(CK_SESSION_HANDLE s, CK_BYTE_PTR p, CK_ULONG n)
{
    CALL(GenerateRandom, (s, p, n));
    return got;
}

static CK_RV my_SignInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE o)
{
    KNOWN(SignInit, o, CKR_KEY_HANDLE_INVALID);
    if (get(REFUSED_MECHANISM) != 0 && m->mechanism == get(REFUSED_MECHANISM))
        return refused(N_SignInit, CKR_MECHANISM_INVALID);
    CALL(SignInit, (s, m, o));
    ANSWER(SignInit);
}

static CK_RV my_Sign(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m)
{
    CALL(Sign, (s, in, n, out, m));
    if (action == FLIP && got == CKR_OK && out != NULL && *m > 0)
        flip(out, *m);
    ANSWER(Sign);
}

static CK_RV unsupported(void) { return CKR_FUNCTION_NOT_SUPPORTED; }

/* load finds the module behind and the orders, by the name of this library's own file. */
static CK_RV load(void)
{
    static CK_RV (*functions_of)(CK_FUNCTION_LIST_PTR_PTR);
    Dl_info self;
    char path[4096], name[4096];
    if (dladdr((void *)load, &self) == 0)
        return CKR_GENERAL_ERROR;
    snprintf(path, sizeof path, "%s.real", self.dli_fname);
    FILE *f = fopen(path, "re");
    if (f == NULL || fgets(name, sizeof name, f) == NULL) {
        fprintf(stderr, "fault module: %s cannot be read\n", path);
        return CKR_GENERAL_ERROR;
    }
    fclose(f);
    name[strcspn(name, "\n")] = 0;
    snprintf(path, sizeof path, "%s.orders", self.dli_fname);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *mem = fd < 0 ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (mem == MAP_FAILED || lib == NULL) {
        fprintf(stderr, "fault module: %s or %s cannot be opened\n", path, name);
        return CKR_GENERAL_ERROR;
    }
    close(fd);
    orders = mem;
    *(void **)&functions_of = dlsym(lib, "C_GetFunctionList");
    if (get(MAGIC) != MAGIC_VALUE || functions_of == NULL)
        return CKR_GENERAL_ERROR;
    logouts = get(LOGOUTS);
    sessions_gone = get(SESSIONS_GONE);
    return functions_of(&real);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR l)
{
    if (real == NULL) {
        CK_RV rv = load();
        if (rv != CKR_OK)
            return rv;
        list.version = real->version;
        /* All but the version are functions. */
        void **first = (void **)&list.C_Initialize;
        for (size_t i = 0; &first[i] < (void **)(&list + 1); i++)
            first[i] = (void *)unsupported;
#define SET(name) list.C_##name = my_##name;
        FUNCTIONS(SET)
        list.C_GetFunctionList = C_GetFunctionList;
    }
    *l = &list;
    return CKR_OK;
}
