// Go's own net/http, as its documentation shows it: a handler, a struct with JSON tags, gzip in a goroutine.
//
//	go build -o peer loadtest/peers/go_http.go && ./peer PORT
//
// It does with an event what record.py says, and keeps as little.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const batchEvents = 5000

type event struct {
	TS        int64  `json:"ts"`
	IP        string `json:"ip"`
	UserAgent string `json:"user_agent"`
	Cookie    string `json:"cookie"`
	Body      string `json:"body"`
}

type batch struct {
	mutex    sync.Mutex
	lines    *bytes.Buffer
	events   int
	lastSize int64
}

func (b *batch) add(e *event) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	encoder := json.NewEncoder(b.lines)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return err
	}
	b.events++
	if b.events == batchEvents {
		go b.compress(b.lines)
		b.lines, b.events = bytes.NewBuffer(make([]byte, 0, b.lines.Len())), 0
	}
	return nil
}

func (b *batch) compress(lines *bytes.Buffer) {
	var out bytes.Buffer
	writer, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	writer.Write(lines.Bytes())
	writer.Close()
	atomic.StoreInt64(&b.lastSize, int64(out.Len()))
}

func address(r *http.Request) string {
	forwarded := r.Header.Get("X-Forwarded-For")
	if last := strings.TrimSpace(forwarded[strings.LastIndexByte(forwarded, ',')+1:]); last != "" {
		return last
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return host
}

func main() {
	open := &batch{lines: new(bytes.Buffer)}
	http.HandleFunc("/collect", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "POST only", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "body not read", http.StatusBadRequest)
			return
		}
		e := event{time.Now().Unix(), address(r), r.UserAgent(), r.Header.Get("Cookie"), string(body)}
		if err := open.add(&e); err != nil {
			http.Error(w, "not encoded", http.StatusInternalServerError)
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
