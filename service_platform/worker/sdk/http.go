package sdk

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// httpWay asks by HTTP.
type httpWay struct {
	urls  []string
	token string
	http  *http.Client
	at    int // of the URLs; changed between two lives only
}

func overHTTP(o Options, secure *tls.Config) (way, error) {
	h := &httpWay{token: o.Token}
	urls := o.URLs
	if s := os.Getenv("NARU_URL"); urls == nil && s != "" {
		urls = strings.Split(s, ",")
	}
	if h.token == "" {
		h.token = os.Getenv("NARU_TOKEN")
	}
	if len(urls) == 0 {
		return nil, errors.New("where is the platform? want Options.URLs, or NARU_URL such as http://127.0.0.1:8780; or Options.Bus")
	}
	for _, s := range urls {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("platform URL %q: want one such as https://naru.example:8780", s)
		}
		h.urls = append(h.urls, strings.TrimRight(u.String(), "/"))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 8
	if secure != nil {
		transport.TLSClientConfig = secure
	}
	h.http = &http.Client{Transport: transport}
	return h, nil
}

func (h *httpWay) turn() { h.at = (h.at + 1) % len(h.urls) }

func (h *httpWay) close() { h.http.CloseIdleConnections() }

func (h *httpWay) ask(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	a := &wire.Answer{}
	switch q.Do {
	case wire.DoJoin:
		a.Joined = &wire.Joined{}
		return a, h.send(ctx, http.MethodPost, q, "", q.Join, a.Joined)
	case wire.DoPoll:
		var calls wire.Calls
		err := h.send(ctx, http.MethodPost, q, "/"+q.ID+"/calls", wire.Poll{Has: q.Has}, &calls)
		a.Calls = calls.Calls
		return a, err
	case wire.DoResults:
		return a, h.send(ctx, http.MethodPost, q, "/"+q.ID+"/results", wire.Results{Results: q.Results}, nil)
	}
	return a, h.send(ctx, http.MethodDelete, q, "/"+q.ID, nil, nil)
}

func (h *httpWay) send(ctx context.Context, method string, q *wire.Question, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, h.urls[h.at]+"/api/v1/workers/"+url.PathEscape(q.Worker)+"/instances"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+h.token)
	r.Header.Set("Content-Type", "application/json")
	res, err := h.http.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		var p struct {
			Detail string `json:"detail"`
		}
		raw, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // what there is of a reason
		if json.Unmarshal(raw, &p) != nil || p.Detail == "" {
			p.Detail = strings.TrimSpace(string(raw))
		}
		return &refusal{res.StatusCode, p.Detail, strings.HasPrefix(res.Header.Get("Content-Type"), "application/problem+json")}
	}
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}
