package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/naru-platform/naru/internal/answer"
)

// whereFile is in the data directory while a platform runs on it: where it answers, and with which token. Mode 0600.
const whereFile = "naru.json"

// where is what whereFile holds.
type where struct {
	URL   string `json:"url"`
	Token string `json:"token"`
	CA    string `json:"ca,omitempty"` // PEM, where URL is https
	PID   int    `json:"pid"`
	MQTT  string `json:"mqtt,omitempty"`
}

// client asks a running platform.
type client struct {
	where
	http *http.Client
}

// client finds the platform by --server, else by --data.
func (o *options) client() (*client, error) {
	var w where
	if o.server != "" {
		u, err := url.Parse(o.server)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("--server %q: want a URL such as https://naru.example:8780", o.server)
		}
		w = where{URL: strings.TrimRight(o.server, "/"), Token: o.token}
		if w.Token == "" {
			w.Token = os.Getenv("NARU_TOKEN")
		}
		if file := os.Getenv("NARU_CA"); file != "" {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("NARU_CA: %w", err)
			}
			w.CA = string(pem)
		}
	} else {
		raw, err := os.ReadFile(filepath.Join(o.data, whereFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no platform is running on %s; start one with `naru up --data %s`, or name another by --data or --server", o.data, o.data)
		}
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w; it is written anew at the platform's next start", filepath.Join(o.data, whereFile), err)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if w.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(w.CA)) {
			return nil, errors.New("the platform's CA is not a PEM certificate")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &client{where: w, http: &http.Client{Transport: transport}}, nil
}

// get asks for a path and decodes the answer into v.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, v)
}

// post sends in and decodes the answer into v.
func (c *client) post(ctx context.Context, path string, in, v any) error {
	return c.do(ctx, http.MethodPost, path, nil, in, v)
}

func (c *client) do(ctx context.Context, method, path string, query url.Values, in, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := c.open(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer r.Close()
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(r).Decode(v); err != nil {
		return fmt.Errorf("answer of %s%s: %w", c.URL, path, err)
	}
	return nil
}

// open asks, and gives the body of a good answer.
func (c *client) open(ctx context.Context, method, path string, query url.Values, in any) (io.ReadCloser, error) {
	r, err := c.ask(ctx, method, path, query, in)
	if err != nil {
		return nil, err
	}
	return r.Body, nil
}

// ask gives a good answer; its body is to be closed.
func (c *client) ask(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if raw, ok := in.([]byte); ok {
		body = bytes.NewReader(raw)
	} else if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	target := c.URL + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	r, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, noAnswer{fmt.Errorf("no naru answers at %s (connection refused); start it with `naru up`, or name another by --data or --server", c.URL)}
		}
		if err = unwrapURL(err); errors.Is(err, http.ErrSchemeMismatch) {
			return nil, noAnswer{fmt.Errorf("%s speaks no TLS: name it by http:// instead of https://", c.URL)}
		}
		return nil, noAnswer{fmt.Errorf("the platform does not answer at %s: %w; is it running?", c.URL, err)}
	}
	if r.StatusCode < 300 {
		return r, nil
	}
	defer r.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10)) // what there is of a refusal is shown
	if r.StatusCode == http.StatusUnauthorized {
		return nil, &refusal{r.StatusCode, c.wantsToken()}
	}
	var p answer.Problem
	if json.Unmarshal(raw, &p) == nil && p.Detail != "" {
		if p.Line > 0 {
			p.Detail = fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Detail)
		}
		return nil, &refusal{r.StatusCode, p.Detail}
	}
	if r.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s does not know %s; the component that answers it may run in another process", c.URL, path)
	}
	return nil, fmt.Errorf("%s%s answers %s", c.URL, path, r.Status)
}

// wantsToken says why a token was not taken.
func (c *client) wantsToken() string {
	switch {
	case c.Token == "":
		return c.URL + " wants a token: --token or NARU_TOKEN; `naru up` keeps it in the file token of its data directory"
	case c.PID != 0:
		return fmt.Sprintf("%s does not take the token of this data directory: another naru answers there, and the one of process %d was not stopped well; start it anew, or name the other by --data", c.URL, c.PID)
	}
	return c.URL + " does not take this token; the right one is in the file token of its data directory"
}

// noAnswer is why a platform cannot be asked at all: so it is with whatever else is asked of it.
type noAnswer struct{ error }

func (e noAnswer) Unwrap() error { return e.error }

// refusal is a platform's answer that it did not do what was asked.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return r.detail }

// registered says whether a device is.
func (c *client) registered(ctx context.Context, device string) (bool, error) {
	err := c.get(ctx, "/api/v1/devices/"+url.PathEscape(device), nil, &struct{}{})
	if refusedWith(err, http.StatusNotFound) {
		return false, nil
	}
	return err == nil, err
}

// refusedWith says whether an error is a refusal with this HTTP status.
func refusedWith(err error, status int) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == status
}

// refusedForGood says whether an error is a refusal of what was asked, so that nothing was done: not a lost answer, a failure
// halfway, nor a platform that wants to be asked again later.
func refusedForGood(err error) bool {
	var r *refusal
	return errors.As(err, &r) && r.status >= 400 && r.status < 500 && r.status != http.StatusRequestTimeout && r.status != http.StatusTooManyRequests
}

// unwrapURL leaves out the method and URL that net/http puts before an error.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
