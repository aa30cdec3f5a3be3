/* The interface between the host service and a plugin in a shared library. This file is the norm; version 1.0.
 *
 * A plugin exports one function, hp_plugin_entry_v1, and answers calls: a number of a method, the bytes of a request,
 * the host's id of the call. README.md beside this file's directory lists the methods and what their bytes say.
 *
 * Memory   Every hp_slice is borrowed for the duration of the call that carries it. Who wants to keep it copies it.
 *          Nobody ever frees the other side's memory. What hp_plugin points at stays valid and unchanged for ever.
 * Threads  The host's functions may be called from any thread, do not block and do not call back. A plugin's functions
 *          may be called from several threads at once, and are to return promptly: what waits is answered later, from
 *          a thread of the plugin's. No lock may be held across a call of the other side.
 * Calls    Each call is completed exactly once. An id that the host does not know, or not any more, is ignored.
 * Streams  A call of a streaming method first emits one empty item once it is open, then its items, and completes when
 *          there are no more. hp_call_opts.window items may be emitted; hp_plugin.grant allows more.
 * Errors   No exception and no unwinding may cross.
 * Growth   Structs only grow at their end, and say their size; numbers are never used again; a new major version has
 *          a new entry symbol.
 */
#ifndef HOST_PLUGIN_H
#define HOST_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HP_MAGIC 0x31475048u /* "HPG1" in memory */
#define HP_ABI_MAJOR 1
#define HP_ABI_MINOR 0

/* Bits of hp_plugin.encodings; hp_host.encoding is the one that the host has chosen. */
#define HP_ENCODING_JSON 1u    /* every plugin must know it */
#define HP_ENCODING_MSGPACK 2u /* named fields, never positional */

/* Interfaces; a method is called by (interface << 16 | number). */
#define HP_RUNTIME 1
#define HP_GPU 2
#define HP_PUBSUB 3
#define HP_TELEMETRY 4

/* Status of a completed call. Except for HP_OK, the body is {"message": "…", "retry": "never" | "later"} in the
 * encoding, or plain text. */
#define HP_OK 0
#define HP_NOT_FOUND 1
#define HP_CONFLICT 2
#define HP_ADDRESS_IN_USE 3
#define HP_INVALID 4
#define HP_DENIED 5
#define HP_UNSUPPORTED 6
#define HP_UNAVAILABLE 7
#define HP_TIMEOUT 8
#define HP_EXHAUSTED 9
#define HP_INTERNAL 10
#define HP_UNIMPLEMENTED (-1) /* there is no such method here: the host does what it does without */
#define HP_CANCELLED (-2)     /* the host had cancelled it */

/* What hp_host.emit says. */
#define HP_EMITTED 0
#define HP_NO_CREDIT 1 /* the item was not taken; wait for hp_plugin.grant */
#define HP_GONE 2      /* nobody reads any more; complete the call */

/* Levels of records. */
#define HP_TRACE 0
#define HP_DEBUG 1
#define HP_INFO 2
#define HP_WARN 3
#define HP_ERROR 4

typedef struct {
  const uint8_t *ptr; /* may be NULL where len is 0 */
  size_t len;
} hp_slice;

typedef struct {
  uint16_t id, major, minor, reserved;
} hp_interface;

typedef struct {
  uint32_t size;
  uint32_t window;     /* items that a streaming method may emit before the first grant */
  uint64_t timeout_ms; /* 0: the host will cancel */
  uint8_t trace_id[16], span_id[8], trace_flags, reserved[7];
} hp_call_opts;

typedef struct {
  uint32_t size, level;
  uint64_t call_id; /* 0: none */
  hp_slice target, message, fields_json, file;
  uint32_t line, reserved;
} hp_log_record;

/* What the host offers; valid for ever. */
typedef struct {
  uint32_t size;
  uint16_t abi_major, abi_minor;
  uint64_t features;
  uint32_t encoding, reserved;
  void *ctx; /* the first argument of each function */
  void (*complete)(void *ctx, uint64_t call, int32_t status, hp_slice body);
  int32_t (*emit)(void *ctx, uint64_t call, hp_slice item);
  void (*log)(void *ctx, const hp_log_record *record);
  uint32_t (*log_level)(void *ctx); /* the lowest level that anybody reads */
} hp_host;

/* What a plugin offers. */
typedef struct {
  uint32_t magic;
  uint16_t abi_major, abi_minor;
  uint32_t size, encodings;
  uint64_t features;
  const char *name, *version, *sdk;
  const char *config_schema; /* JSON Schema of the plugin's section, or NULL */
  const hp_interface *interfaces;
  uint64_t interface_count;
  /* Begins to make an instance; `call` completes when it is ready, or says why not. `config` is JSON:
   * {"interface": 1, "section": …, "state_dir": "/…", "local": false, "role": "service" | "tool"}. NULL when `call` has
   * failed already. */
  void *(*create)(const hp_host *host, uint64_t call, hp_slice config);
  void (*call)(void *self, uint64_t call, uint32_t method, hp_slice request, const hp_call_opts *opts);
  void (*cancel)(void *self, uint64_t call);                  /* nobody waits any more; still complete it */
  void (*grant)(void *self, uint64_t call, uint32_t credits); /* so many more items may be emitted */
  void (*shutdown)(void *self, uint64_t call);                /* no further calls come; complete when all is done */
  void (*destroy)(void *self);                                /* the last use of self; nothing may be emitted after */
} hp_plugin;

/* The only export. Has no effect, and gives the same answer each time. */
const hp_plugin *hp_plugin_entry_v1(void);

#ifdef __cplusplus
}
#endif
#endif
