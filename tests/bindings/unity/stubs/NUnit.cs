// As much of NUnit and of Unity's test framework as the package's tests use.
using System;
using System.Collections;

namespace NUnit.Framework
{
    public class SetUpAttribute : Attribute { }
    public class TearDownAttribute : Attribute { }
    public class TestAttribute : Attribute { }

    public delegate void TestDelegate();

    public static class Assert
    {
        public static void AreEqual(object expected, object actual)
        {
            if (Convert.ToString(expected) != Convert.ToString(actual))
                throw new Exception("expected " + expected + ", got " + actual);
        }

        public static void IsTrue(bool condition) => AreEqual(true, condition);

        public static void Greater(int value, int than)
        {
            if (value <= than) throw new Exception(value + " is not greater than " + than);
        }

        public static T Throws<T>(TestDelegate code) where T : Exception
        {
            try
            {
                code();
            }
            catch (T exception)
            {
                return exception;
            }
            throw new Exception("no " + typeof(T));
        }

        public static void Ignore(string message) => throw new Exception("ignored: " + message);
    }

    public static class CollectionAssert
    {
        public static void AreEqual(IEnumerable expected, IEnumerable actual)
        {
            var (left, right) = (expected.GetEnumerator(), actual.GetEnumerator());
            while (left.MoveNext())
            {
                Assert.IsTrue(right.MoveNext());
                Assert.AreEqual(left.Current, right.Current);
            }
            Assert.IsTrue(!right.MoveNext());
        }
    }
}

namespace UnityEngine.TestTools
{
    public class UnityTestAttribute : Attribute { }
}
