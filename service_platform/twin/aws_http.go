package twin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// The HTTP API of AWS IoT's Device Shadow, for code that is written for it: the same twins, behind the platform's token,
// https://docs.aws.amazon.com/iot/latest/developerguide/device-shadow-rest-api.html.
func (t *Twins) awsRoutes() []component.Route {
	return []component.Route{
		{Pattern: "GET /things/{device}/shadow", Handler: awsFunc(t.awsGet)},
		{Pattern: "POST /things/{device}/shadow", Handler: awsFunc(t.awsUpdate)},
		{Pattern: "DELETE /things/{device}/shadow", Handler: awsFunc(t.awsDelete)},
		{Pattern: "GET /api/things/shadow/ListNamedShadowsForThing/{device}", Handler: awsFunc(t.awsList)},
	}
}

// awsPageMost is how many names ListNamedShadowsForThing gives at most.
const awsPageMost = 100

// exceptions are what AWS's clients call an answer by.
var exceptions = map[int]string{
	http.StatusBadRequest:            "InvalidRequestException",
	http.StatusUnauthorized:          "UnauthorizedException",
	http.StatusNotFound:              "ResourceNotFoundException",
	http.StatusMethodNotAllowed:      "MethodNotAllowedException",
	http.StatusConflict:              "ConflictException",
	http.StatusRequestEntityTooLarge: "RequestEntityTooLargeException",
	http.StatusUnsupportedMediaType:  "UnsupportedDocumentEncodingException",
	http.StatusTooManyRequests:       "ThrottlingException",
	http.StatusServiceUnavailable:    "ServiceUnavailableException",
	http.StatusInternalServerError:   "InternalFailureException",
}

// awsFunc answers with what it returns, and tells errors in AWS's form.
type awsFunc func(r *http.Request) (any, error)

// ServeHTTP calls f.
func (f awsFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v, err := f(r)
	if err == nil {
		answer.JSON(w, http.StatusOK, v)
		return
	}
	status := http.StatusInternalServerError
	var p *answer.Problem
	var e *shadow.Error
	text := err.Error()
	switch {
	case errors.As(err, &e):
		status, text = e.Code, e.Message
	case errors.As(err, &p):
		status = p.Status
	case errors.As(err, new(*message.Rejection)):
		status = http.StatusBadRequest
	}
	name, ok := exceptions[status]
	if !ok {
		name = exceptions[http.StatusInternalServerError]
	}
	w.Header().Set("x-amzn-ErrorType", name)
	answer.JSON(w, status, map[string]string{"message": text})
}

// awsRef reads which twin is meant. AWS calls the name `name`.
func awsRef(r *http.Request) (ref, error) {
	q := r.URL.Query()
	x := ref{r.PathValue("device"), q.Get("name")}
	if q.Has("name") && !shadow.CheckName(x.shadow) {
		return x, shadow.InvalidName()
	}
	return x, nil
}

func (t *Twins) awsGet(r *http.Request) (any, error) {
	x, err := awsRef(r)
	if err != nil {
		return nil, err
	}
	var payload []byte
	err = t.env.View(func(v component.View) error {
		d, err := load(v, x)
		if err != nil {
			return err
		}
		var refused *shadow.Error
		if payload, refused = d.Get(nil, x.called(), t.env.Now()); refused != nil {
			return refused
		}
		return nil
	})
	return json.RawMessage(payload), err
}

func (t *Twins) awsUpdate(r *http.Request) (any, error) {
	x, err := awsRef(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(t.limits.Request)+1))
	switch {
	case err != nil:
		return nil, answer.Bad(fmt.Errorf("read the request: %w", err))
	case len(body) > t.limits.Request:
		return nil, shadow.TooLarge()
	}
	return t.ask(r, x, "update", body)
}

func (t *Twins) awsDelete(r *http.Request) (any, error) {
	x, err := awsRef(r)
	if err != nil {
		return nil, err
	}
	return t.ask(r, x, "delete", nil)
}

// awsList gives the names of a device's named twins, in the order of their bytes. A device without one has an empty list.
func (t *Twins) awsList(r *http.Request) (any, error) {
	q := r.URL.Query()
	size := awsPageMost
	if s := q.Get("pageSize"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > awsPageMost {
			return nil, answer.Bad(fmt.Errorf("pageSize=%s: want 1 to %d", s, awsPageMost))
		}
		size = n
	}
	after, err := base64.RawURLEncoding.DecodeString(q.Get("nextToken"))
	if err != nil {
		return nil, answer.Bad(errors.New("nextToken: want what the answer before said"))
	}
	out := struct {
		Results   []string `json:"results"`
		NextToken string   `json:"nextToken,omitempty"`
		Timestamp int64    `json:"timestamp"`
	}{Results: []string{}, Timestamp: t.env.Now().Unix()}
	return &out, t.env.View(func(v component.View) error {
		names, err := shadows(v, ref{device: r.PathValue("device")})
		for _, n := range names {
			if n <= string(after) {
				continue
			}
			if len(out.Results) == size {
				out.NextToken = base64.RawURLEncoding.EncodeToString([]byte(out.Results[size-1]))
				break
			}
			out.Results = append(out.Results, n)
		}
		return err
	})
}
