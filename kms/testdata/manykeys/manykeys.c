/*
 * A PKCS#11 module that stands before another one, whose path MANYKEYS_MODULE gives, and shows a token with many AES
 * keys: MANYKEYS_KEYS keys of VERSIONS versions. Real tokens would need hours to make them. They are a list that is not
 * even in memory: a key's number gives its label and its CKA_ID. All use the value of one real key, which has the label
 * "value". All other objects and functions are those of the module behind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(type, name) type name
#define CK_DECLARE_FUNCTION_POINTER(type, name) type(*name)
#define CK_CALLBACK_FUNCTION(type, name) type(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

#define VERSIONS 3
#define FIRST (1UL << 40) /* the lowest handle of such a key */
#define SESSIONS 65536

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST list;
static uint64_t objects; /* such keys, times VERSIONS */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CK_OBJECT_HANDLE value; /* of the real key; 0: not found yet */

/* The search of a session: the objects from next to end - 1. */
static struct search { CK_SESSION_HANDLE session; uint64_t next, end; int open; } searches[SESSIONS];

static struct search *search_of(CK_SESSION_HANDLE s)
{
    for (size_t i = 0; i < SESSIONS; i++)
        if (searches[i].open && searches[i].session == s)
            return &searches[i];
    return NULL;
}

static void id_of(uint64_t n, unsigned char *id)
{
    uint32_t parts[2] = {n / VERSIONS, n % VERSIONS};
    for (int i = 0; i < 8; i++)
        id[i] = parts[i / 4] >> (24 - 8 * (i % 4));
}

static int label_of(uint64_t n, char *text)
{
    return sprintf(text, "key%06lu@%lu", (unsigned long)(n / VERSIONS), (unsigned long)(n % VERSIONS));
}

static CK_ATTRIBUTE_PTR find(CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_ATTRIBUTE_TYPE type)
{
    for (CK_ULONG i = 0; i < n; i++)
        if (a[i].type == type)
            return &a[i];
    return NULL;
}

/* matches says whether object n has the id and the label of a search. */
static int matches(uint64_t n, CK_ATTRIBUTE_PTR id, CK_ATTRIBUTE_PTR label)
{
    unsigned char own[8];
    char text[64];
    id_of(n, own);
    int length = label_of(n, text);
    return (id == NULL || (id->ulValueLen == 8 && memcmp(id->pValue, own, 8) == 0)) &&
           (label == NULL || (label->ulValueLen == (CK_ULONG)length && memcmp(label->pValue, text, length) == 0));
}

/* begin sets the range of a search for AES keys of the token. */
static void begin(struct search *f, CK_ATTRIBUTE_PTR id, CK_ATTRIBUTE_PTR label)
{
    unsigned long key, version;
    f->next = 0, f->end = objects;
    if (id == NULL && label == NULL)
        return;
    uint64_t n = objects; /* none */
    if (label != NULL) {
        char text[64] = "";
        memcpy(text, label->pValue, label->ulValueLen < 63 ? label->ulValueLen : 63);
        if (sscanf(text, "key%lu@%lu", &key, &version) == 2 && version < VERSIONS)
            n = key * VERSIONS + version;
    } else if (id->ulValueLen == 8) {
        const unsigned char *b = id->pValue;
        key = (unsigned long)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
        version = (unsigned long)b[4] << 24 | b[5] << 16 | b[6] << 8 | b[7];
        n = version < VERSIONS ? key * VERSIONS + version : objects;
    }
    f->next = n, f->end = n < objects && matches(n, id, label) ? n + 1 : n;
}

static CK_RV my_FindObjectsInit(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
    CK_ATTRIBUTE_PTR class = find(a, n, CKA_CLASS), token = find(a, n, CKA_TOKEN);
    if (class == NULL || token == NULL || *(CK_OBJECT_CLASS *)class->pValue != CKO_SECRET_KEY)
        return real->C_FindObjectsInit(s, a, n);
    CK_RV rv = CKR_HOST_MEMORY;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < SESSIONS; i++)
        if (!searches[i].open) {
            searches[i].open = 1, searches[i].session = s;
            begin(&searches[i], find(a, n, CKA_ID), find(a, n, CKA_LABEL));
            rv = CKR_OK;
            break;
        }
    pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV my_FindObjects(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR found, CK_ULONG most, CK_ULONG_PTR count)
{
    pthread_mutex_lock(&lock);
    struct search *f = search_of(s);
    for (*count = 0; f != NULL && *count < most && f->next < f->end; f->next++)
        found[(*count)++] = FIRST + f->next;
    pthread_mutex_unlock(&lock);
    return f != NULL ? CKR_OK : real->C_FindObjects(s, found, most, count);
}

static CK_RV my_FindObjectsFinal(CK_SESSION_HANDLE s)
{
    pthread_mutex_lock(&lock);
    struct search *f = search_of(s);
    if (f != NULL)
        f->open = 0;
    pthread_mutex_unlock(&lock);
    return f != NULL ? CKR_OK : real->C_FindObjectsFinal(s);
}

static CK_RV fill(CK_ATTRIBUTE_PTR a, const void *from, CK_ULONG size)
{
    if (a->pValue != NULL && a->ulValueLen < size)
        return CKR_BUFFER_TOO_SMALL;
    if (a->pValue != NULL)
        memcpy(a->pValue, from, size);
    a->ulValueLen = size;
    return CKR_OK;
}

static CK_RV my_GetAttributeValue(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
    if (o < FIRST)
        return real->C_GetAttributeValue(s, o, a, n);
    static const CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    static const CK_ULONG bytes = 32;
    static const CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    static const CK_KEY_TYPE aes = CKK_AES;
    unsigned char id[8];
    char label[64];
    id_of(o - FIRST, id);
    CK_ULONG length = label_of(o - FIRST, label);
    CK_RV worst = CKR_OK;
    for (CK_ULONG i = 0; i < n; i++) {
        CK_RV rv = CKR_OK;
        switch (a[i].type) {
        case CKA_CLASS: rv = fill(&a[i], &class, sizeof class); break;
        case CKA_KEY_TYPE: rv = fill(&a[i], &aes, sizeof aes); break;
        case CKA_ID: rv = fill(&a[i], id, sizeof id); break;
        case CKA_LABEL: rv = fill(&a[i], label, length); break;
        case CKA_VALUE_LEN: rv = fill(&a[i], &bytes, sizeof bytes); break;
        case CKA_START_DATE: rv = fill(&a[i], "", 0); break;
        case CKA_EXTRACTABLE:
        case CKA_DECRYPT: rv = fill(&a[i], &no, sizeof no); break;
        default: rv = fill(&a[i], &yes, sizeof yes);
        }
        worst = rv != CKR_OK ? rv : worst;
    }
    return worst;
}

static CK_RV my_EncryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
    if (key < FIRST)
        return real->C_EncryptInit(s, m, key);
    pthread_mutex_lock(&lock);
    CK_RV rv = CKR_OK;
    if (value == 0) {
        CK_ATTRIBUTE label = {CKA_LABEL, "value", 5};
        CK_ULONG count = 0;
        rv = real->C_FindObjectsInit(s, &label, 1);
        if (rv == CKR_OK && (real->C_FindObjects(s, &value, 1, &count) != CKR_OK || count != 1))
            rv = CKR_GENERAL_ERROR;
        real->C_FindObjectsFinal(s);
    }
    CK_OBJECT_HANDLE o = value;
    pthread_mutex_unlock(&lock);
    return rv == CKR_OK ? real->C_EncryptInit(s, m, o) : rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR l)
{
    void *lib = dlopen(getenv("MANYKEYS_MODULE"), RTLD_NOW | RTLD_LOCAL);
    CK_RV (*functions_of)(CK_FUNCTION_LIST_PTR_PTR) = NULL;
    if (lib == NULL)
        return CKR_GENERAL_ERROR;
    *(void **)&functions_of = dlsym(lib, "C_GetFunctionList");
    CK_RV rv = functions_of == NULL ? CKR_GENERAL_ERROR : functions_of(&real);
    if (rv != CKR_OK)
        return rv;
    objects = strtoull(getenv("MANYKEYS_KEYS"), NULL, 10) * VERSIONS;
    list = *real;
    list.C_GetFunctionList = C_GetFunctionList;
    list.C_FindObjectsInit = my_FindObjectsInit;
    list.C_FindObjects = my_FindObjects;
    list.C_FindObjectsFinal = my_FindObjectsFinal;
    list.C_GetAttributeValue = my_GetAttributeValue;
    list.C_EncryptInit = my_EncryptInit;
    *l = &list;
    return CKR_OK;
}
