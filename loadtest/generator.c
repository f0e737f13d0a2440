/* The load generator: events at a fixed rate over keep-alive connections, on one core, timed from when they were due.
 *
 * Open loop (--rate R): event k is due at start + k/R whether or not earlier ones were answered. If no connection is free it
 * waits, and that wait is in its latency, so a stall of the server is seen by every event that fell into it (no coordinated
 * omission). Events still unsent at the end are put into the histogram with the age they had reached.
 * Closed loop (--rate 0): every connection sends again as soon as it is answered: with many (--connections) saturation, with
 * few a front that waits for each answer. Latency is from the send.
 * One event a connection (--close 1.0 | 1.1): connect, send one event, read the answer and the end of input, close. 1.0 is what
 * nginx sends to an upstream by default, 1.1 says `Connection: close`. Latency is from before the connect. A connection that the
 * server leaves open takes no second event, and one that ends without an answer is an error.
 *
 * The requests are a rotation of --rotation different ones, each with its own user agent, cookie, X-Forwarded-For and body
 * (--body bytes), 13 headers each, so that no cache of a repeated request flatters the server. Variants:
 *   fresh-ip   a client address never seen before for every event      split      head and body in separate segments
 *   pipelined  DEPTH requests in one segment                           origin     an Origin header in place of a trace id (CORS)
 *   warm       one and the same request, over and over: what the rotation is there to avoid, for comparison
 *   mixed      24 different sets and orders of headers, in turn, as many kinds of browsers behind one load balancer send them
 * With --from FILE the requests are those of a file, each behind its size in four bytes (what many events in one request look like);
 * what is counted then are requests, not events.
 * It ends after --duration seconds, or --events events. It prints one JSON object: counts, answers by status, achieved rate, latency percentiles in microseconds, its own CPU share
 * (near 1: the generator was the bottleneck, the figure is void) and the largest delay that was its own: an event due, a connection free, and not yet sent.
 *
 * Build: cc -O2 -o generator generator.c */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 4096, DEPTH = 4, READ_BUFFER = 16384 };
#define SPLIT_GAP 300000L           /* ns between head and body: more than a loop turn of the server */
#define OVERTIME 200000000L         /* ns after the end in which what was due is still sent: a pause of the quota is none of it */
#define GRACE 5000000000L           /* ns to wait for outstanding answers */

/* ---- The histogram: 64 steps per power of two, so every percentile is right to 1.6 % ---- */
static uint64_t histogram[64 * 64], recorded, largest;

static void record(int64_t nanoseconds, uint64_t count) {
    uint64_t us = nanoseconds > 0 ? (uint64_t)nanoseconds / 1000 : 0;
    int shift = us < 128 ? 0 : 57 - __builtin_clzll(us);
    histogram[shift * 64 + (us >> shift)] += count;
    recorded += count;
    if (us > largest) largest = us;
}

static uint64_t percentile(double share) {
    uint64_t wanted = (uint64_t)(share * recorded), seen = 0;
    for (int i = 0; i < 64 * 64; i++)
        if ((seen += histogram[i]) > wanted) {                       /* the step's upper edge, never flattering */
            int shift = i < 128 ? 0 : i / 64 - 1;
            uint64_t low = i < 128 ? (uint64_t)i : (uint64_t)(i - shift * 64), upper = ((low + 1) << shift) - 1;
            return upper < largest ? upper : largest;
        }
    return largest;
}

/* ---- The requests ---- */
struct request { char *text; int size, head_size, address_offset; };

static struct request *requests;
static int rotation = 2000, body_size = 350, port = 8080, connection_count = 32;
static const char *host = "127.0.0.1", *path = "/collect";
static const char *from_file;          /* not NULL: where the requests are read from */
static const char *close_version;      /* not NULL: one event a connection, of this HTTP version */
static bool fresh_ip, split, pipelined, origin, warm, mixed;
static uint64_t random_state = 0x9E3779B97F4A7C15u;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

static unsigned draw(unsigned below) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % below;
}

/* A public address, every part three digits long, so that a fresh one fits where the old one stood. */
static void write_address(char *at, unsigned n) {
    char text[16];
    snprintf(text, sizeof text, "%03u.%03u.%03u.%03u", 130 + n / 1000000 % 30, 100 + n / 10000 % 100, 100 + n / 100 % 100, 100 + n % 100);
    memcpy(at, text, 15);
}

static void build_request(struct request *r, int number) {
    static const char *systems[] = {"Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64",
                                    "Linux; Android 15; SM-S931N", "iPhone; CPU iPhone OS 18_6 like Mac OS X", "Linux; Android 14; Pixel 8"};
    static const char *titles[] = {"Autumn sale", "\xea\xb0\x80\xec\x9d\x84 \xec\x84\xb8\xec\x9d\xbc", "Checkout \\\"fast\\\"", "Home"};
    char body[65536], extra[96];
    int size = snprintf(body, sizeof body,
        "{\"id\":\"%08x%08x\",\"event\":\"page_view\",\"url\":\"https://shop.example.com/products/%u?utm_source=mail&utm_campaign=c%u\","
        "\"title\":\"%s\",\"screen\":{\"w\":%u,\"h\":%u},\"session\":{\"n\":%u,\"age\":%u},\"note\":\"",
        draw(1u << 31), draw(1u << 31), draw(1000000), draw(1000), titles[draw(4)], 360 + draw(3000), 640 + draw(2000), draw(500), draw(100000));
    while (size < body_size - 2) body[size++] = "etaoin shrdlu cmfwyp"[draw(20)];
    if (size + 2 <= (int)sizeof body) memcpy(body + size, "\"}", 2), size += 2;
    if (origin) snprintf(extra, sizeof extra, "Origin: https://shop.example.com");
    else snprintf(extra, sizeof extra, "X-Amzn-Trace-Id: Root=1-67891233-%08x%08x%08x", draw(1u << 31), draw(1u << 31), draw(1u << 31));
    char forwarded[128], agent[192], cookie[128], referer[96];
    snprintf(forwarded, sizeof forwarded, "X-Forwarded-For: 000.000.000.000\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\n");
    snprintf(agent, sizeof agent, "User-Agent: Mozilla/5.0 (%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%u.0.%u.%u Safari/537.36\r\n",
        systems[draw(6)], 90 + draw(55), draw(7000), draw(200));
    snprintf(referer, sizeof referer, "Referer: https://shop.example.com/products/%u\r\n", draw(1000000));
    snprintf(cookie, sizeof cookie, "Cookie: _ga=GA1.2.%u.%u; session=%08x%08x; consent=all; cart=%u\r\n",
        draw(1u << 31), draw(1u << 31), draw(1u << 31), draw(1u << 31), draw(100));
    static const char *kind = "Content-Type: text/plain;charset=UTF-8\r\nAccept: */*\r\n",
                      *accepted = "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: ko-KR,ko;q=0.9,en-US;q=0.8\r\n";
    int layout = mixed ? number % 24 : 0;
    bool late_address = layout & 1, early_cookie = layout & 2, no_referer = layout & 4;
    const char *hints[] = {"", "Sec-CH-UA-Mobile: ?0\r\nSec-Fetch-Mode: no-cors\r\n", "DNT: 1\r\nPriority: u=4\r\n"};
    r->text = malloc(size + 2048);
    r->head_size = sprintf(r->text, "POST %s HTTP/%s\r\n%s%sHost: collect.example.com\r\n%s\r\nContent-Length: %d\r\n%s%s%s%s%s%s%s%s\r\n", path,
        close_version ? close_version : "1.1", close_version ? "Connection: close\r\n" : "", late_address ? "" : forwarded, extra, size, early_cookie ? cookie : "", agent, kind, no_referer ? "" : referer, accepted,
        hints[layout / 8], early_cookie ? "" : cookie, late_address ? forwarded : "");
    r->address_offset = (int)(strstr(r->text, "000.000") - r->text);
    write_address(r->text + r->address_offset, 29000000u - (unsigned)number);
    memcpy(r->text + r->head_size, body, size);
    r->size = r->head_size + size;
}

static void read_requests(void) {
    FILE *file = fopen(from_file, "rb");
    if (!file) die("--from %s: %s", from_file, strerror(errno));
    uint32_t size;
    for (rotation = 0; fread(&size, sizeof size, 1, file) == 1; rotation++) {
        requests = realloc(requests, (rotation + 1) * sizeof *requests);
        requests[rotation] = (struct request){.text = malloc(size), .size = (int)size};
        if (fread(requests[rotation].text, 1, size, file) != size) die("--from %s: cut short", from_file);
    }
    fclose(file);
    if (!rotation) die("--from %s: no request in it", from_file);
}

/* ---- The connections ---- */
struct connection {
    int descriptor, waiting;        /* answers still to come */
    int64_t idle_at;                /* since when it has had nothing to do */
    int64_t due;                    /* of the event in flight (all DEPTH of a pipelined group share it) */
    struct request *body_of;        /* split: whose body is still to be sent, at body_at */
    int64_t body_at;
    int held;                       /* bytes of an answer not yet whole */
    char buffer[READ_BUFFER];
};

static struct connection connections[MAX_CONNECTIONS];
static int idle[MAX_CONNECTIONS], idle_first, idle_count, poller;     /* a ring: all connections take their turn */
static int late_bodies[MAX_CONNECTIONS], late_first, late_count;      /* the same, of connections that owe a body */
static uint64_t most, sent, ok, broken, statuses[1000], next_request;
static int64_t largest_lag;

static int64_t clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void push(int *ring, int first, int *count, int value) { ring[(first + (*count)++) % connection_count] = value; }

static int pull(int *ring, int *first, int *count) {
    int value = ring[*first];
    *first = (*first + 1) % connection_count;
    (*count)--;
    return value;
}

static void connect_to_server(int number) {
    struct connection *c = &connections[number];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int yes = 1, room = 1 << 20;        /* for the requests of a file: a send is never cut short */
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die("--host: not an IPv4 address: %s", host);
    if ((ntohl(address.sin_addr.s_addr) >> 24) != 127) die("--host: this generator only loads 127.0.0.0/8");
    c->descriptor = socket(AF_INET, SOCK_STREAM, 0);
    if (from_file) setsockopt(c->descriptor, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (connect(c->descriptor, (struct sockaddr *)&address, sizeof address)) die("connect %s:%d: %s", host, port, strerror(errno));
    setsockopt(c->descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(c->descriptor, F_SETFL, O_NONBLOCK);
    c->waiting = c->held = 0;
    c->body_of = NULL;
    struct epoll_event wish = {.events = EPOLLIN, .data.u32 = number};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->descriptor, &wish);
}

static void open_connection(int number) {
    if (!close_version) connect_to_server(number);
    connections[number].waiting = 0;
    connections[number].idle_at = clock_now();
    push(idle, idle_first, &idle_count, number);
}

static void reopen(int number) {            /* after the server closed it: what was in flight is an error */
    broken += connections[number].waiting;
    if (connections[number].waiting) record(clock_now() - connections[number].due, connections[number].waiting);
    close(connections[number].descriptor);
    open_connection(number);
}

static void transmit(struct connection *c, const char *data, int size) {
    ssize_t n = send(c->descriptor, data, size, MSG_NOSIGNAL);
    if (n != size && errno != EPIPE && errno != ECONNRESET) die("a send was cut short: %zd of %d", n, size);
}

static void send_event(int number, int64_t due) {
    static char group[DEPTH * 70000];
    struct connection *c = &connections[number];
    if (close_version) connect_to_server(number);
    c->due = due;
    c->waiting = pipelined ? DEPTH : 1;
    int size = 0;
    struct request *r = NULL;
    for (int i = 0; i < c->waiting; i++, sent++) {
        r = &requests[warm ? 0 : next_request++ % rotation];
        if (fresh_ip) write_address(r->text + r->address_offset, (unsigned)sent);
        if (pipelined) memcpy(group + size, r->text, r->size);
        size += r->size;
    }
    if (split) {
        transmit(c, r->text, r->head_size);
        c->body_of = r;
        c->body_at = clock_now() + SPLIT_GAP;
        push(late_bodies, late_first, &late_count, number);
    } else transmit(c, pipelined ? group : r->text, size);
}

/* ---- The answers: status, then Content-Length or chunked, nothing more is looked at ---- */
static int answer_size(const char *data, int size, int *status, bool *closing) {      /* 0: not whole yet */
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    int length = 0;
    *status = atoi(data + 9);
    *closing = false;
    for (const char *line = data; line < end; line++) {
        line = memchr(line, '\n', end - line);
        if (!line) break;
        if (!strncasecmp(line + 1, "content-length:", 15)) length = atoi(line + 16);
        else if (!strncasecmp(line + 1, "transfer-encoding:", 18)) length = -1;
        else if (!strncasecmp(line + 1, "connection: close", 17)) *closing = true;
    }
    int head = (int)(end + 4 - data);
    if (length >= 0) return head + length <= size ? head + length : 0;
    const char *last = memmem(end + 2, size - head + 2, "\r\n0\r\n\r\n", 7);
    return last ? (int)(last + 7 - data) : 0;
}

static void receive(int number) {
    struct connection *c = &connections[number];
    ssize_t n = recv(c->descriptor, c->buffer + c->held, READ_BUFFER - c->held, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        bool was_idle = !c->waiting && !close_version;
        if (was_idle)                                                        /* take it out of the ring of the idle */
            for (int i = idle_count, first = idle_first; i > 0; i--) {
                int other = pull(idle, &first, &idle_count);
                idle_first = first;
                if (other != number) push(idle, idle_first, &idle_count, other);
            }
        reopen(number);
        return;
    }
    c->held += n;
    int at = 0, size, status;
    bool closing = false;
    while (c->waiting && (size = answer_size(c->buffer + at, c->held - at, &status, &closing))) {
        at += size;
        c->waiting--;
        statuses[status > 0 && status < 1000 ? status : 0]++;
        ok += status >= 200 && status < 300;
        record(clock_now() - c->due, 1);
        if (closing && !close_version) { reopen(number); return; }
    }
    memmove(c->buffer, c->buffer + at, c->held -= at);
    if (c->held == READ_BUFFER) die("an answer of more than %d bytes", READ_BUFFER);
    if (c->waiting || c->body_of || close_version) return;                   /* one event a connection: until the end of input */
    c->idle_at = clock_now();
    push(idle, idle_first, &idle_count, number);
}

static void send_late_bodies(int64_t now) {
    while (late_count && (connections[late_bodies[late_first]].body_at <= now || !connections[late_bodies[late_first]].body_of)) {
        int number = pull(late_bodies, &late_first, &late_count);
        struct connection *c = &connections[number];
        if (!c->body_of) continue;                                           /* reopened in the meantime */
        struct request *r = c->body_of;
        c->body_of = NULL;
        transmit(c, r->text + r->head_size, r->size - r->head_size);
    }
}

/* ---- The pacing ---- */
static double run(double rate, double seconds, uint64_t *unsent) {
    int group = pipelined ? DEPTH : 1;
    double gap = rate > 0 ? 1e9 * group / rate : 0;
    int64_t start = clock_now(), end = start + (int64_t)(seconds * 1e9), now = start;
    uint64_t due_count = 0;
    struct epoll_event ready[256];
    for (;;) {
        now = clock_now();
        int64_t due = rate > 0 ? start + (int64_t)(due_count * gap) : now;
        if (most && sent >= most && end > now) end = now;
        while (idle_count && due <= now && due < end && now < end + OVERTIME && !(most && sent >= most)) {
            int64_t free_at = connections[idle[idle_first]].idle_at, lag = now - (due > free_at ? due : free_at);
            if (rate > 0 && lag > largest_lag) largest_lag = lag;
            send_event(pull(idle, &idle_first, &idle_count), due);
            due_count++;
            if (rate > 0) due = start + (int64_t)(due_count * gap);
            else due = now = clock_now();
        }
        send_late_bodies(now);
        bool finished = now >= end;
        bool all_sent = rate <= 0 || (most && sent >= most) || due >= end || now >= end + OVERTIME;
        if (finished && ((all_sent && idle_count == connection_count) || now > end + GRACE)) break;
        int64_t wait = 20000000;
        if (idle_count && !finished && rate > 0 && due - now < wait) wait = due > now ? due - now : 0;
        if (late_count && connections[late_bodies[late_first]].body_at - now < wait) wait = connections[late_bodies[late_first]].body_at - now;
        struct timespec timeout = {wait > 0 ? wait / 1000000000L : 0, wait > 0 ? wait % 1000000000L : 0};
        int n = epoll_pwait2(poller, ready, 256, &timeout, NULL);
        for (int i = 0; i < n; i++) receive(ready[i].data.u32);
    }
    *unsent = 0;
    if (rate > 0 && !most)
        for (; start + (int64_t)(due_count * gap) < end; due_count++, *unsent += group)
            record(end - (start + (int64_t)(due_count * gap)), group);
    return (now < end + GRACE ? (now > end ? now : end) - start : now - start) / 1e9;
}

int main(int count, char **words) {
    double rate = 0, seconds = 5;
    static const struct option options[] = {{"rate", 1, 0, 'r'}, {"duration", 1, 0, 'd'}, {"connections", 1, 0, 'c'}, {"variant", 1, 0, 'v'},
        {"rotation", 1, 0, 'n'}, {"body", 1, 0, 'b'}, {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'u'}, {"close", 1, 0, 'x'}, {"events", 1, 0, 'e'}, {"from", 1, 0, 'f'}, {0}};
    for (int o; (o = getopt_long(count, words, "", options, NULL)) != -1;)
        switch (o) {
        case 'r': rate = atof(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'c': connection_count = atoi(optarg); break;
        case 'n': rotation = atoi(optarg); break;
        case 'b': body_size = atoi(optarg); break;
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'f': from_file = optarg; break;
        case 'e': most = strtoull(optarg, NULL, 10); break;
        case 'x':
            if (strcmp(close_version = optarg, "1.0") && strcmp(optarg, "1.1")) die("--close: 1.0 or 1.1");
            break;
        case 'v':
            fresh_ip = !strcmp(optarg, "fresh-ip"), split = !strcmp(optarg, "split"), pipelined = !strcmp(optarg, "pipelined");
            origin = !strcmp(optarg, "origin"), warm = !strcmp(optarg, "warm"), mixed = !strcmp(optarg, "mixed");
            if (!(fresh_ip || split || pipelined || origin || warm || mixed || !strcmp(optarg, "plain")))
                die("--variant: plain, fresh-ip, split, pipelined, origin, warm, mixed");
            break;
        default: return 2;
        }
    if (connection_count < 1 || connection_count > MAX_CONNECTIONS) die("--connections: 1 to %d", MAX_CONNECTIONS);
    if (rotation < 1 || body_size < 0 || body_size > 65000) die("--rotation at least 1, --body 0 to 65000");
    if (close_version && (pipelined || split)) die("--close: not with --variant pipelined or split");
    if (from_file) {
        if (fresh_ip || split || pipelined || close_version) die("--from: only with connections that are kept, and no such --variant");
        read_requests();
    } else {
        requests = calloc(rotation, sizeof *requests);
        for (int i = 0; i < rotation; i++) build_request(&requests[i], i);
    }
    prctl(PR_SET_TIMERSLACK, 1000);
    poller = epoll_create1(0);
    for (int i = 0; i < connection_count; i++) open_connection(i);

    uint64_t unsent, unanswered = 0;
    double duration = run(rate, seconds, &unsent);
    for (int i = 0; i < connection_count; i++) unanswered += connections[i].waiting;

    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"offered_rate\": %.1f, \"duration\": %.3f, \"sent\": %lu, \"ok\": %lu, \"unsent\": %lu, \"unanswered\": %lu, \"broken_connections\": %lu, "
           "\"achieved_rate\": %.1f, \"request_bytes\": %d, \"statuses\": {", rate, duration, sent, ok, unsent, unanswered, broken, ok / duration, requests[0].size);
    const char *separator = "";
    for (int i = 0; i < 1000; i++)
        if (statuses[i]) printf("%s\"%d\": %lu", separator, i, statuses[i]), separator = ", ";
    printf("}, \"latency_us\": {\"p50\": %lu, \"p90\": %lu, \"p99\": %lu, \"p999\": %lu, \"max\": %lu}, \"generator_cpu\": %.3f, \"pacing_lag_us\": %ld}\n",
           percentile(0.5), percentile(0.9), percentile(0.99), percentile(0.999), largest, cpu / duration, largest_lag / 1000);
    return 0;
}
